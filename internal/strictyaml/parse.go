// Package strictyaml reads YAML and JSON text into generic values and
// remembers on which line each value stood, so that a later error can point at
// it. It is strict where the formats are lax: a repeated key, an explicit null
// and a key that is not a string are errors, and numbers stay as they were
// written.
package strictyaml

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Document is one value of a text.
type Document struct {
	// Value is made of map[string]any, []any, string, bool and json.Number.
	Value any
	lines map[string]int
}

// Error is a problem with the text itself.
type Error struct {
	File    string
	Line    int // from 1; 0 if unknown
	Problem string
}

// Error implements error: "FILE:LINE: problem".
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Problem
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Problem)
}

// Line returns the line, from 1, of the value at a path such as
// "spec.enis[0].mac"; where there is none, that of what should have held it.
func (d *Document) Line(path string) int {
	for {
		if n, ok := d.lines[path]; ok {
			return n
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return d.lines[""]
		}
		path = path[:i]
	}
}

// Limits of one document after its aliases are resolved: a text of a few
// hundred bytes can otherwise ask for gigabytes.
const (
	maxDepth  = 64
	maxValues = 1 << 18
)

// Parse reads all documents of a text: YAML documents separated by "---", or
// JSON values one after the other. Empty documents are left out. The name is
// for errors, which are *Error; all that are found are joined.
func Parse(name string, text []byte) ([]*Document, error) {
	nodes, problem := parseNodes(text)
	if problem != nil {
		problem.File = name
		return nil, problem
	}
	var docs []*Document
	var errs []error
	for _, n := range nodes {
		c := converter{file: name, lines: map[string]int{}}
		v := c.value("", n, 0)
		errs = append(errs, c.errs...)
		docs = append(docs, &Document{Value: v, lines: c.lines})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return docs, nil
}

// parseNodes returns the root node of each document. JSON goes through its own
// reader, because not all of it is YAML: tabs, surrogate pairs.
func parseNodes(text []byte) ([]*yaml.Node, *Error) {
	trimmed := bytes.TrimLeft(text, " \t\r\n")
	if len(trimmed) > 0 && (trimmed[0] == '{' || trimmed[0] == '[') {
		nodes, problem := jsonNodes(text)
		if problem == nil {
			return nodes, nil
		}
		// A YAML flow mapping starts like JSON.
		if nodes, yamlProblem := yamlNodes(text); yamlProblem == nil {
			return nodes, nil
		}
		return nil, problem
	}
	return yamlNodes(text)
}

// Package yaml has no typed syntax error: the line is in the message, and
// counts from 0 where its parser (not its scanner) made the complaint.
var (
	yamlLine   = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)
	yamlParser = regexp.MustCompile(`did not find expected (?:',' or |'-' |key|node content|<)`)
)

func yamlNodes(text []byte) ([]*yaml.Node, *Error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var nodes []*yaml.Node
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return nodes, nil
		}
		if err != nil {
			return nil, yamlError(err)
		}
		if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
			continue
		}
		if root := doc.Content[0]; root.ShortTag() != "!!null" {
			nodes = append(nodes, root)
		}
	}
}

func yamlError(err error) *Error {
	m := yamlLine.FindStringSubmatch(err.Error())
	if m == nil {
		return &Error{Problem: "is not YAML: " + err.Error()}
	}
	e := &Error{Line: 1, Problem: "is not YAML: " + strings.TrimPrefix(err.Error(), m[0])}
	if n, err := strconv.Atoi(m[1]); err == nil { // otherwise the first line, which goes without saying
		e.Line = n
		if yamlParser.MatchString(e.Problem) {
			e.Line++
		}
	}
	return e
}

// converter turns a node into a generic value.
type converter struct {
	file   string
	lines  map[string]int
	values int
	errs   []error
}

func (c *converter) fail(n *yaml.Node, format string, args ...any) any {
	c.errs = append(c.errs, &Error{File: c.file, Line: n.Line, Problem: fmt.Sprintf(format, args...)})
	return nil
}

func (c *converter) value(path string, n *yaml.Node, depth int) any {
	if _, seen := c.lines[path]; !seen {
		c.lines[path] = n.Line
	}
	if c.values++; c.values == maxValues || depth > maxDepth {
		c.values = maxValues
		return c.fail(n, "is too large or too deep: at most %d values and %d levels, aliases resolved", maxValues, maxDepth)
	}
	if c.values > maxValues {
		return nil // reported already
	}
	switch n.Kind {
	case yaml.AliasNode:
		return c.value(path, n.Alias, depth+1)
	case yaml.MappingNode:
		return c.mapping(path, n, depth)
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for i, e := range n.Content {
			list = append(list, c.value(fmt.Sprintf("%s[%d]", path, i), e, depth+1))
		}
		return list
	}
	return c.scalar(path, n)
}

func (c *converter) mapping(path string, n *yaml.Node, depth int) any {
	m := map[string]any{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		switch k.ShortTag() {
		case "!!str":
		case "!!merge":
			c.fail(k, "the merge key << is not supported; write the fields out")
			continue
		default:
			c.fail(k, "the key %s is not a string; quote it", k.Value)
			continue
		}
		p := join(path, k.Value)
		if _, dup := m[k.Value]; dup {
			c.fail(k, "%s appears twice; first on line %d", p, c.lines[p])
			continue
		}
		c.lines[p] = k.Line
		m[k.Value] = c.value(p, v, depth+1)
	}
	return m
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func (c *converter) scalar(path string, n *yaml.Node) any {
	switch tag := n.ShortTag(); tag {
	case "!!str", "!!timestamp":
		return n.Value
	case "!!bool":
		var b bool
		if err := n.Decode(&b); err != nil {
			return c.fail(n, "%s: %q is not a boolean", path, n.Value)
		}
		return b
	case "!!null":
		return c.fail(n, "%s: is empty or null; leave it out or give a value", path)
	case "!!int":
		// 0x1f and 1_000 are YAML, not JSON: the value is the same.
		if i, ok := new(big.Int).SetString(n.Value, 0); ok {
			return json.Number(i.String())
		}
		return c.fail(n, "%s: %q is not a number", path, n.Value)
	case "!!float":
		if json.Valid([]byte(n.Value)) {
			return json.Number(n.Value)
		}
		return c.fail(n, "%s: %q is not a plain decimal number", path, n.Value)
	default:
		return c.fail(n, "%s: the tag %s is not supported", path, tag)
	}
}
