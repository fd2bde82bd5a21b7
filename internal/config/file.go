package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/spell"
	"github.com/vpcproxy/vpcproxy/internal/strictyaml"
)

// fileValues is what a file says, as texts.
type fileValues struct {
	path  string
	tree  map[string]any // leaves are string or []string
	lines map[string]int // by key
}

// readFile reads a file strictly: unknown keys are errors.
func readFile(path string) (*fileValues, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	docs, err := strictyaml.Parse(path, raw)
	if err != nil {
		return nil, err
	}
	f := &fileValues{path: path, lines: map[string]int{}}
	switch len(docs) {
	case 0:
		return f, nil
	case 1:
	default:
		return nil, fmt.Errorf("%s:%d: is a second document; want one", path, docs[1].Line(""))
	}
	m, ok := docs[0].Value.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s:%d: want keys and values such as `roles: [function]`", path, docs[0].Line(""))
	}
	r := fileReader{values: f, doc: docs[0]}
	f.tree = r.group("", m)
	return f, errors.Join(r.errs...)
}

type fileReader struct {
	values *fileValues
	doc    *strictyaml.Document
	errs   []error
}

func (r *fileReader) fail(key, format string, args ...any) {
	r.errs = append(r.errs, &Error{key, fmt.Sprintf("%s:%d", r.values.path, r.doc.Line(key)), fmt.Sprintf(format, args...)})
}

func (r *fileReader) group(prefix string, m map[string]any) map[string]any {
	out := map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		key := prefix + name
		i := slices.IndexFunc(settings, func(s setting) bool { return s.key == key })
		isGroup := slices.ContainsFunc(settings, func(s setting) bool { return strings.HasPrefix(s.key, key+".") })
		sub, isMap := m[name].(map[string]any)
		switch {
		case strings.Contains(name, "."):
			r.fail(key, "is not a known key; levels are nested, as in `log: {level: info}`")
		case i >= 0:
			r.values.lines[key] = r.doc.Line(key)
			out[name] = r.leaf(settings[i], m[name])
		case isGroup && isMap:
			out[name] = r.group(key+".", sub)
		case isGroup:
			r.fail(key, "is a group; want %s under it", enumerate(known(key+".")))
		default:
			r.unknown(prefix, key)
		}
	}
	return out
}

// known lists the keys and groups at one level.
func known(prefix string) []string {
	var names []string
	for _, s := range settings {
		if rest, ok := strings.CutPrefix(s.key, prefix); ok {
			name, _, _ := strings.Cut(rest, ".")
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

func (r *fileReader) unknown(prefix, key string) {
	all := make([]string, 0, len(settings))
	for _, s := range settings {
		all = append(all, s.key)
	}
	hint := "known here: " + strings.Join(known(prefix), ", ")
	if name := spell.Nearest(strings.TrimPrefix(key, prefix), known(prefix)); name != "" {
		hint = "did you mean " + prefix + name + "?"
	} else if full := spell.Nearest(key, all); full != "" {
		hint = "did you mean " + full + "?"
	}
	r.fail(key, "is not a known key; %s", hint)
}

func (r *fileReader) leaf(s setting, v any) any {
	list, isList := v.([]any)
	switch {
	case s.codec.list && !isList:
		r.fail(s.key, "want a list, such as [%s]", scalarText(v))
		return nil
	case !s.codec.list && isList:
		r.fail(s.key, "is a list; want one %s", s.codec.kind)
		return nil
	case !isList:
		if _, isMap := v.(map[string]any); isMap {
			r.fail(s.key, "is a group; want one %s", s.codec.kind)
			return nil
		}
		return scalarText(v)
	}
	out := make([]string, 0, len(list))
	for _, e := range list {
		switch e.(type) {
		case []any, map[string]any:
			r.fail(s.key, "holds a list or a group; want plain values")
		default:
			out = append(out, scalarText(e))
		}
	}
	return out
}

func scalarText(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	case json.Number:
		return v.String()
	}
	return "..."
}
