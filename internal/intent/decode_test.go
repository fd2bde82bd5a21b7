package intent_test

import (
	"encoding/json"
	"errors"
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

func key(k uint32) *uint32 { return &k }

// compareNet makes cmp compare netip values.
var compareNet = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

const fullAttachment = `{
	"apiVersion": "vpcproxy.io/v1alpha1", "kind": "Attachment",
	"metadata": {"name": "orders", "revision": 42},
	"spec": {
		"vpc": "acme", "cidrs": ["172.16.101.0/24", "172.16.102.4"], "group": "g", "scope": "pods",
		"pods": ["10.244.1.5", "10.244.2.0/24"], "nodes": ["f1"],
		"enis": [{"node": "p1", "mac": "02:42:ac:10:65:04", "addresses": ["172.16.101.9/24"], "gateway": "172.16.101.1"}],
		"snatAddress": "172.16.101.100", "greKey": 4294967295, "allowOverlap": true
	},
	"status": {"greKey": 7}
}`

func wantFull() *intent.Attachment {
	return &intent.Attachment{
		TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindAttachment},
		Metadata: intent.Metadata{Name: "orders", Revision: 42},
		Spec: intent.AttachmentSpec{
			VPC: "acme", CIDRs: prefixes("172.16.101.0/24", "172.16.102.4/32"), Group: "g", Scope: intent.ScopePods,
			Pods: prefixes("10.244.1.5/32", "10.244.2.0/24"), Nodes: []string{"f1"},
			ENIs: []intent.ENI{{
				Node: "p1", MAC: "02:42:ac:10:65:04", Addresses: prefixes("172.16.101.9/24"), Gateway: netip.MustParseAddr("172.16.101.1"),
			}},
			SNATAddress: netip.MustParseAddr("172.16.101.100"), GREKey: key(math.MaxUint32), AllowOverlap: true,
		},
		Status: intent.AttachmentStatus{GREKey: key(7)},
	}
}

func TestDecode(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want intent.Object
	}{
		"attachment": {fullAttachment, wantFull()},
		"group": {
			`{"apiVersion":"vpcproxy.io/v1alpha1","kind":"ProxyGroup","metadata":{"name":"g"},"spec":{"members":[{"node":"p1"}],"tunnelAddress":"10.0.0.4"}}`,
			&intent.ProxyGroup{
				TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindProxyGroup}, Metadata: intent.Metadata{Name: "g"},
				Spec: intent.ProxyGroupSpec{Members: []intent.Member{{Node: "p1"}}, TunnelAddress: netip.MustParseAddr("10.0.0.4")},
			},
		},
		"node": {
			`{"apiVersion":"vpcproxy.io/v1alpha1","kind":"Node","metadata":{"name":"f1","managedBy":"agent"},"spec":{"roles":["function","proxy"],"underlayAddress":"192.168.80.8","podCIDRs":["10.244.1.0/24"],"underlayCIDRs":["192.168.0.0/16"]},"status":{"tunnelAddress":"100.64.0.1"}}`,
			&intent.Node{
				TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindNode}, Metadata: intent.Metadata{Name: "f1", ManagedBy: "agent"},
				Spec: intent.NodeSpec{
					Roles: []intent.Role{intent.RoleFunction, intent.RoleProxy}, UnderlayAddress: netip.MustParseAddr("192.168.80.8"),
					PodCIDRs: prefixes("10.244.1.0/24"), UnderlayCIDRs: prefixes("192.168.0.0/16"),
				},
				Status: intent.NodeStatus{TunnelAddress: netip.MustParseAddr("100.64.0.1")},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := intent.DecodeJSON([]byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got, compareNet); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
			if err := got.Validate(); err != nil {
				t.Errorf("Validate: %v", err)
			}
		})
	}
}

// Numbers come in as many forms as there are decoders.
func TestDecodeNumbers(t *testing.T) {
	for name, c := range map[string]struct {
		value any
		want  uint32
		ok    bool
	}{
		"float64":         {float64(math.MaxUint32), math.MaxUint32, true},
		"int":             {7, 7, true},
		"int64":           {int64(7), 7, true},
		"uint64":          {uint64(7), 7, true},
		"json.Number":     {json.Number("7"), 7, true},
		"decimal text":    {"7", 7, true},
		"hexadecimal":     {"0xdeadbeef", 0xdeadbeef, true},
		"fraction":        {7.5, 0, false},
		"not a number":    {math.NaN(), 0, false},
		"infinity":        {math.Inf(1), 0, false},
		"beyond uint32":   {int64(math.MaxUint32 + 1), 0, false},
		"beyond int64":    {uint64(math.MaxUint64), 0, false},
		"negative":        {-1, 0, false},
		"text":            {"seven", 0, false},
		"exponent":        {json.Number("1e3"), 0, false},
		"boolean":         {true, 0, false},
		"beyond exact":    {float64(1 << 60), 0, false},
		"list":            {[]any{7.0}, 0, false},
		"address as text": {"10.0.0.1", 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := intent.Decode(map[string]any{
				"apiVersion": intent.APIVersion, "kind": "Attachment", "spec": map[string]any{"greKey": c.value},
			})
			if (err == nil) != c.ok {
				t.Fatalf("error %v; want one: %v", err, !c.ok)
			}
			if !c.ok {
				wantField(t, err, "spec.greKey", "is not a whole number")
				return
			}
			a, ok := o.(*intent.Attachment)
			if !ok || a.Spec.GREKey == nil || *a.Spec.GREKey != c.want {
				t.Errorf("decoded %+v; want the key %d", o, c.want)
			}
		})
	}
}

// fieldErrors lists the leaves of a joined error.
func fieldErrors(t *testing.T, err error) []*intent.FieldError {
	t.Helper()
	var fe *intent.FieldError
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var list []*intent.FieldError
		for _, e := range joined.Unwrap() {
			list = append(list, fieldErrors(t, e)...)
		}
		return list
	}
	if !errors.As(err, &fe) {
		t.Fatalf("%v is not a FieldError", err)
	}
	return []*intent.FieldError{fe}
}

// wantField checks that an error is about a field, among others perhaps.
func wantField(t *testing.T, err error, field, text string) {
	t.Helper()
	fieldError(t, err, field, text)
}

// fieldError returns the error about a field.
func fieldError(t *testing.T, err error, field, text string) *intent.FieldError {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one about %s", field)
	}
	for _, fe := range fieldErrors(t, err) {
		if fe.Field == field && strings.Contains(fe.Problem, text) {
			return fe
		}
	}
	t.Fatalf("no error about %s with %q in:\n%v", field, text, err)
	return nil
}

func TestDecodeRefuses(t *testing.T) {
	const head = `{"apiVersion":"vpcproxy.io/v1alpha1","kind":"Attachment","metadata":{"name":"x"},`
	for name, c := range map[string]struct{ text, field, problem string }{
		"a list":           {`[]`, "(object)", "is a list"},
		"a string":         {`"x"`, "(object)", "is a string"},
		"null":             {`null`, "(object)", "is null"},
		"a number":         {`7`, "(object)", "is a number"},
		"a boolean":        {`true`, "(object)", "is a boolean"},
		"no kind":          {`{}`, "kind", `"" is not known`},
		"kind as number":   {`{"kind":7}`, "kind", `"" is not known`},
		"kind in capitals": {`{"kind":"ATTACHMENT"}`, "kind", `"ATTACHMENT" is not known`},
		"no version":       {`{"kind":"Node"}`, "apiVersion", `"" is not served; want "vpcproxy.io/v1alpha1"`},
		"unknown at top":   {head + `"extra":1}`, "extra", "known here: apiVersion, kind, metadata, spec, status"},
		"unknown in meta":  {`{"kind":"Node","metadata":{"labels":{}}}`, "metadata.labels", "known here: managedBy, name, revision"},
		"other case":       {head + `"spec":{"VPC":"v"}}`, "spec.VPC", "is not a known field"},
		"null in a list":   {head + `"spec":{"cidrs":[null]}}`, "spec.cidrs[0]", "is null"},
		"deep in a list":   {head + `"spec":{"enis":[{},{"addresses":["1.2.3.4/24","x"]}]}}`, "spec.enis[1].addresses[1]", `"x" is not an address or a CIDR`},
		"address":          {head + `"spec":{"snatAddress":"1.2.3.4/24"}}`, "spec.snatAddress", "is not an IP address"},
		"number as CIDR":   {head + `"spec":{"pods":[10]}}`, "spec.pods[0]", "is a number; want a string"},
		"object as list":   {head + `"spec":{"pods":{}}}`, "spec.pods", "is an object; want a list"},
		"list as object":   {head + `"spec":[]}`, "spec", "is a list; want an object"},
		"text as boolean":  {head + `"spec":{"allowOverlap":"true"}}`, "spec.allowOverlap", "want true or false"},
		"number as text":   {head + `"spec":{"vpc":7}}`, "spec.vpc", "is a number; want a string"},
		"revision":         {`{"kind":"Node","metadata":{"revision":1.5}}`, "metadata.revision", "is not a whole number"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := intent.DecodeJSON([]byte(c.text))
			fe := fieldError(t, err, c.field, c.problem)
			if strings.HasPrefix(c.text, head) && fe.Object != "Attachment/x" {
				t.Errorf("error is about %q; want Attachment/x", fe.Object)
			}
		})
	}
	_, err := intent.DecodeJSON([]byte(head + `"spec":{"vpc":7,"cidrs":["x","y"],"nope":1}}`))
	if n := len(fieldErrors(t, err)); n != 4 {
		t.Errorf("%d errors; want all four:\n%v", n, err)
	}
	for _, text := range []string{``, `{`, `{"kind":"Node"}}`, `{"kind":"Node"} {}`, `{"kind":"Node"} x`} {
		if _, err := intent.DecodeJSON([]byte(text)); err == nil || errors.As(err, new(*intent.FieldError)) {
			t.Errorf("DecodeJSON(%q): %v; want an error about the text", text, err)
		}
	}
}

func TestFieldErrorText(t *testing.T) {
	e := &intent.FieldError{Field: "kind", Problem: "is odd"}
	if got := e.Error(); got != "kind: is odd" {
		t.Errorf("text %q", got)
	}
	e.Object = "Node/x"
	if got := e.Error(); got != "Node/x: kind: is odd" {
		t.Errorf("text %q", got)
	}
}

func TestDecodeSet(t *testing.T) {
	set := platform()
	b, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	got, err := intent.DecodeSet(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(set, got, compareNet); diff != "" {
		t.Errorf("after a round trip (-want +got):\n%s", diff)
	}
	if _, err := intent.DecodeSet([]byte(`{"revision":1,"later":true}`)); err != nil {
		t.Errorf("a field of a later release: %v; want it left out", err)
	}
	for _, text := range []string{``, `[]`, `{"revision":"x"}`, `{"attachments":[{"spec":{"cidrs":["x"]}}]}`, `{"removed":[null]}`} {
		if _, err := intent.DecodeSet([]byte(text)); err == nil {
			t.Errorf("DecodeSet(%q) succeeded", text)
		}
	}
}

// FuzzDecode checks that nothing makes the decoder panic, that errors name a
// field, and that what is accepted survives being written and read again.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(fullAttachment))
	f.Add([]byte(`{"apiVersion":"vpcproxy.io/v1alpha1","kind":"Node","metadata":{"name":"f1"},"spec":{"roles":["function"],"underlayAddress":"192.168.80.8"}}`))
	f.Add([]byte(`{"apiVersion":"vpcproxy.io/v1alpha1","kind":"ProxyGroup","metadata":{"name":"g"},"spec":{"members":[{"node":"p1"}]}}`))
	f.Add([]byte(`{"kind":"Attachment","spec":{"enis":[{"gateway":"fe80::1%eth0","addresses":["::ffff:1.2.3.4/120"]}],"greKey":1e400}}`))
	f.Add([]byte(`{"kind":"Node","spec":{"podCIDRs":[null,7,[],{},"0.0.0.0/0"]}}`))
	set, err := json.Marshal(platform())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(set)
	f.Add([]byte(`{"nodes":[null],"attachments":[{"metadata":{"name":"a"}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		checkSet(t, b)
		o, err := intent.DecodeJSON(b)
		if err != nil {
			return
		}
		valid := o.Validate()
		set := &intent.Set{}
		if _, checked := set.Check(o); valid != nil && checked == nil {
			t.Errorf("Check accepts what Validate refuses: %v", valid)
		}
		text, err := json.Marshal(o)
		if err != nil {
			t.Fatalf("what was decoded cannot be written: %v", err)
		}
		again, err := intent.DecodeJSON(text)
		if err != nil {
			// An empty list or address is written as nothing, or null.
			if valid == nil {
				t.Fatalf("what is valid cannot be read again: %v\n%s", err, text)
			}
			return
		}
		if valid == nil && normal(t, o) != normal(t, again) {
			t.Errorf("changed by writing and reading:\n%s\n%+v", text, again)
		}
	})
}

// checkSet reads a snapshot, or a cache, and does with it what an agent does before
// it has looked at any object.
func checkSet(t *testing.T, b []byte) {
	t.Helper()
	s, err := intent.DecodeSet(b)
	if err != nil {
		return
	}
	for _, a := range s.Attachments {
		_ = s.GroupsOf(a)
	}
	for _, n := range s.Nodes {
		_ = s.Clone().Node(n.ObjectName())
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatalf("what was decoded cannot be written: %v", err)
	}
	if _, err := intent.DecodeSet(text); err != nil {
		t.Errorf("what was written cannot be read again: %v\n%s", err, text)
	}
}

// normal is an object's JSON: lists that are empty and absent are the same.
func normal(t *testing.T, o intent.Object) string {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
