package intent

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// FieldError is a problem with one field of an object.
type FieldError struct {
	Object  string // "Attachment/orders"; "" while unknown
	Field   string // "spec.cidrs[0]"
	Problem string // what is wrong and how to mend it
	Reason  Reason // what sort of problem it is
}

// Reason sorts problems by what the caller can do about them.
type Reason uint8

// The reasons.
const (
	Invalid  Reason = iota // the object is wrong in itself
	NotFound               // it refers to something that does not exist
	Conflict               // it collides with another object
)

// Error implements error.
func (e *FieldError) Error() string {
	if e.Object == "" {
		return e.Field + ": " + e.Problem
	}
	return e.Object + ": " + e.Field + ": " + e.Problem
}

// Decode makes an object of a generic JSON value (map[string]any and so on,
// with float64, json.Number or integer numbers). It is strict: an unknown or
// malformed field is a *FieldError that names it; all that are found are
// joined. The object is not validated: see Object.Validate.
func Decode(v any) (Object, error) {
	m, ok := v.(map[string]any)
	if !ok {
		return nil, &FieldError{Field: "(object)", Problem: fmt.Sprintf("is %s; want an object with apiVersion, kind, metadata and spec", typeName(v))}
	}
	kind, _ := m["kind"].(string)
	var o Object
	switch Kind(kind) {
	case KindAttachment:
		o = &Attachment{}
	case KindProxyGroup:
		o = &ProxyGroup{}
	case KindNode:
		o = &Node{}
	default:
		return nil, &FieldError{Field: "kind", Problem: fmt.Sprintf("%q is not known; want Attachment, ProxyGroup or Node", kind)}
	}
	d := decoder{object: kind}
	if meta, ok := m["metadata"].(map[string]any); ok {
		if name, ok := meta["name"].(string); ok {
			d.object += "/" + name
		}
	}
	d.decode("", v, reflect.ValueOf(o).Elem())
	if av, _ := m["apiVersion"].(string); av != APIVersion {
		d.fail("apiVersion", fmt.Sprintf("%q is not served; want %q", av, APIVersion))
	}
	return o, errors.Join(d.errs...)
}

// DecodeJSON is Decode of a JSON text.
func DecodeJSON(b []byte) (Object, error) {
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("object is not JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("object is followed by more text: want one JSON object")
	}
	return Decode(v)
}

// decoder walks a generic value and a Go value side by side, so that every
// error can name its field: encoding/json names neither list index nor the
// field of a failed TextUnmarshaler.
type decoder struct {
	object string
	errs   []error
}

func (d *decoder) fail(field, problem string) {
	d.errs = append(d.errs, &FieldError{Object: d.object, Field: field, Problem: problem})
}

func (d *decoder) decode(path string, v any, dst reflect.Value) {
	if v == nil {
		d.fail(path, "is null; leave the field out or give a value")
		return
	}
	if u, ok := dst.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.text(path, v, dst, u)
		return
	}
	switch dst.Kind() {
	case reflect.Pointer:
		p := reflect.New(dst.Type().Elem())
		d.decode(path, v, p.Elem())
		dst.Set(p)
	case reflect.Struct:
		d.structure(path, v, dst)
	case reflect.Slice:
		list, ok := v.([]any)
		if !ok {
			d.fail(path, fmt.Sprintf("is %s; want a list", typeName(v)))
			return
		}
		s := reflect.MakeSlice(dst.Type(), len(list), len(list))
		for i, e := range list {
			d.decode(fmt.Sprintf("%s[%d]", path, i), e, s.Index(i))
		}
		dst.Set(s)
	default:
		d.scalar(path, v, dst)
	}
}

func (d *decoder) text(path string, v any, dst reflect.Value, u encoding.TextUnmarshaler) {
	s, ok := v.(string)
	if !ok {
		d.fail(path, fmt.Sprintf("is %s; want a string", typeName(v)))
		return
	}
	// A pod source or CIDR may be given as a single address.
	if dst.Type() == reflect.TypeFor[netip.Prefix]() && !strings.Contains(s, "/") {
		if a, err := netip.ParseAddr(s); err == nil {
			dst.Set(reflect.ValueOf(netip.PrefixFrom(a, a.BitLen())))
			return
		}
	}
	if err := u.UnmarshalText([]byte(s)); err != nil {
		d.fail(path, fmt.Sprintf("%q is not %s", s, wanted(dst.Type())))
	}
}

func wanted(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[netip.Prefix]():
		return "an address or a CIDR such as 172.16.101.0/24"
	case reflect.TypeFor[netip.Addr]():
		return "an IP address such as 172.16.101.4"
	case reflect.TypeFor[Duration]():
		return "a duration with its unit, such as 100ms or 10s"
	}
	return "a valid " + t.String()
}

func (d *decoder) structure(path string, v any, dst reflect.Value) {
	m, ok := v.(map[string]any)
	if !ok {
		d.fail(path, fmt.Sprintf("is %s; want an object", typeName(v)))
		return
	}
	fields := map[string]reflect.Value{}
	collectFields(dst, fields)
	for _, k := range slices.Sorted(mapKeys(m)) {
		p := k
		if path != "" {
			p = path + "." + k
		}
		f, ok := fields[k]
		if !ok {
			known := slices.Sorted(mapKeys(fields))
			d.fail(p, "is not a known field; known here: "+strings.Join(known, ", "))
			continue
		}
		d.decode(p, m[k], f)
	}
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func collectFields(dst reflect.Value, into map[string]reflect.Value) {
	for i := range dst.NumField() {
		f := dst.Type().Field(i)
		if f.Anonymous {
			collectFields(dst.Field(i), into)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		into[name] = dst.Field(i)
	}
}

func (d *decoder) scalar(path string, v any, dst reflect.Value) {
	switch dst.Kind() {
	case reflect.String:
		if s, ok := v.(string); ok {
			dst.SetString(s)
			return
		}
		d.fail(path, fmt.Sprintf("is %s; want a string", typeName(v)))
	case reflect.Bool:
		if b, ok := v.(bool); ok {
			dst.SetBool(b)
			return
		}
		d.fail(path, fmt.Sprintf("is %s; want true or false", typeName(v)))
	case reflect.Uint32:
		n, ok := integer(v)
		if !ok || n < 0 || n > math.MaxUint32 {
			d.fail(path, fmt.Sprintf("%v is not a whole number from 0 to %d", v, uint32(math.MaxUint32)))
			return
		}
		dst.SetUint(uint64(n))
	case reflect.Int64:
		n, ok := integer(v)
		if !ok {
			d.fail(path, fmt.Sprintf("%v is not a whole number", v))
			return
		}
		dst.SetInt(n)
	default:
		d.fail(path, "cannot be decoded: no rule for "+dst.Type().String())
	}
}

func integer(v any) (int64, bool) {
	switch n := v.(type) {
	case int:
		return int64(n), true
	case int64:
		return n, true
	case uint64:
		return int64(n), n <= math.MaxInt64
	case float64:
		// 2^53 bounds the integers that a float64 holds exactly.
		return int64(n), n == math.Trunc(n) && math.Abs(n) <= 1<<53
	case json.Number:
		i, err := strconv.ParseInt(n.String(), 10, 64)
		return i, err == nil
	case string:
		// The protobuf JSON form of 64-bit numbers, and hexadecimal keys.
		i, err := strconv.ParseInt(n, 0, 64)
		return i, err == nil
	}
	return 0, false
}

func typeName(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case map[string]any:
		return "an object"
	case []any:
		return "a list"
	}
	return "a number"
}

// DecodeSet reads a Set that was written by encoding/json, as the agent's cache
// and the controller's snapshots are. Its objects were validated by whoever
// wrote it; unknown fields are left out, so that an older agent can follow a
// newer controller.
func DecodeSet(b []byte) (*Set, error) {
	var s Set
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("intent is malformed: %w", err)
	}
	// An object that is null is none, and nobody expects it.
	for field, i := range map[string]int{
		"nodes": slices.Index(s.Nodes, nil), "groups": slices.Index(s.Groups, nil),
		"attachments": slices.Index(s.Attachments, nil), "removed": slices.Index(s.Removed, nil),
	} {
		if i >= 0 {
			return nil, fmt.Errorf("intent is malformed: %s[%d] is null", field, i)
		}
	}
	return &s, nil
}
