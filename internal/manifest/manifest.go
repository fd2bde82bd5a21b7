// Package manifest reads objects from files and writes them. Its errors name
// the file, the line, the object and the field.
package manifest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/strictyaml"
)

// Document is one object and where it was read.
type Document struct {
	Object intent.Object
	File   string
	text   *strictyaml.Document
	prefix string // path of the object within the text, if it is in a List
}

// Error is a problem with something that was read.
type Error struct {
	File string
	Line int   // from 1; 0 if unknown
	Err  error // often an *intent.FieldError
}

// Error implements error: "FILE:LINE: Kind/name: field: problem".
func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err)
}

// Unwrap returns the problem without its place.
func (e *Error) Unwrap() error { return e.Err }

// Locate gives each *intent.FieldError in err the place of its field in the
// document. Other errors get the place of the object.
func (d *Document) Locate(err error) error {
	if err == nil {
		return nil
	}
	var located []error
	for _, e := range flatten(err) {
		field := ""
		var fe *intent.FieldError
		if errors.As(e, &fe) {
			field = fe.Field
		}
		located = append(located, &Error{File: d.File, Line: d.line(field), Err: e})
	}
	return errors.Join(located...)
}

func (d *Document) line(field string) int {
	if d.prefix == "" {
		return d.text.Line(field)
	}
	return d.text.Line(d.prefix + "." + field)
}

// flatten returns the leaves of joined errors.
func flatten(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var leaves []error
	for _, e := range joined.Unwrap() {
		leaves = append(leaves, flatten(e)...)
	}
	return leaves
}

// Parse reads the objects of a text: YAML documents or JSON values, each an
// object or a List of them. The name is for errors. Each object is validated
// alone; all problems are joined, each an *Error, or a *strictyaml.Error if the
// text itself is wrong.
func Parse(name string, text []byte) ([]*Document, error) {
	docs, err := strictyaml.Parse(name, text)
	if err != nil {
		return nil, err
	}
	var out []*Document
	var errs []error
	for _, d := range docs {
		for _, item := range items(d.Value) {
			doc := &Document{File: name, text: d, prefix: item.prefix}
			o, err := intent.Decode(item.value)
			if err == nil {
				err = o.Validate()
			}
			if err != nil {
				errs = append(errs, doc.Locate(err))
				continue
			}
			doc.Object = o
			out = append(out, doc)
		}
	}
	if err := errors.Join(append(errs, duplicates(out))...); err != nil {
		return nil, err
	}
	return out, nil
}

type item struct {
	prefix string
	value  any
}

// items unpacks what `get -o json` prints for several objects.
func items(v any) []item {
	m, ok := v.(map[string]any)
	list, isList := m["items"].([]any)
	if !ok || m["kind"] != "List" || !isList {
		return []item{{value: v}}
	}
	var out []item
	for i, e := range list {
		out = append(out, item{prefix: fmt.Sprintf("items[%d]", i), value: e})
	}
	return out
}

func duplicates(docs []*Document) error {
	type id struct {
		kind intent.Kind
		name string
	}
	first := map[id]*Document{}
	var errs []error
	for _, d := range docs {
		k := id{d.Object.ObjectKind(), d.Object.ObjectName()}
		if f, ok := first[k]; ok {
			errs = append(errs, d.Locate(&intent.FieldError{
				Object: string(k.kind) + "/" + k.name, Field: "metadata.name", Reason: intent.Conflict,
				Problem: fmt.Sprintf("is also at %s:%d; keep one", f.File, f.line("metadata.name")),
			}))
			continue
		}
		first[k] = d
	}
	return errors.Join(errs...)
}

// Load reads the objects of a file, of a directory's *.yaml, *.yml and *.json
// files in the order of their names, or of stdin if the path is "-". They are
// returned in the order in which they must be applied: what is referred to
// comes first. One object twice is an error.
func Load(path string, stdin io.Reader) ([]*Document, error) {
	docs, err := load(path, stdin)
	if err != nil {
		return nil, err
	}
	if err := duplicates(docs); err != nil {
		return nil, err
	}
	slices.SortStableFunc(docs, func(a, b *Document) int {
		return slices.Index(intent.Kinds, a.Object.ObjectKind()) - slices.Index(intent.Kinds, b.Object.ObjectKind())
	})
	return docs, nil
}

func load(path string, stdin io.Reader) ([]*Document, error) {
	if path == "-" {
		text, err := io.ReadAll(stdin)
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		return Parse("standard input", text)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	if !info.IsDir() {
		return loadFile(path)
	}
	entries, err := os.ReadDir(path) // sorted by name
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	var docs []*Document
	var errs []error
	for _, e := range entries {
		if !isManifest(e.Name()) {
			continue
		}
		d, err := loadFile(filepath.Join(path, e.Name()))
		docs = append(docs, d...)
		errs = append(errs, err)
	}
	return docs, errors.Join(errs...)
}

// isManifest leaves out what editors and ConfigMap mounts put beside the files.
func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

func loadFile(path string) ([]*Document, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return Parse(path, text)
}
