package strictyaml

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// jsonReader builds yaml nodes of JSON tokens, so that both formats share one
// converter and one encoder, and objects keep the order of their keys.
type jsonReader struct {
	dec   *json.Decoder
	text  []byte
	line  int
	upTo  int64 // line counts the newlines before this offset
	depth int
}

func jsonNodes(text []byte) ([]*yaml.Node, *Error) {
	r := &jsonReader{dec: json.NewDecoder(bytes.NewReader(text)), text: text, line: 1}
	r.dec.UseNumber()
	var nodes []*yaml.Node
	for {
		n, err := r.next()
		if errors.Is(err, io.EOF) {
			return nodes, nil
		}
		if err != nil {
			return nil, r.syntaxError(err)
		}
		nodes = append(nodes, n)
	}
}

func (r *jsonReader) syntaxError(err error) *Error {
	at := r.dec.InputOffset()
	var se *json.SyntaxError
	if errors.As(err, &se) {
		at = se.Offset
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		at = int64(len(r.text))
	}
	return &Error{Line: r.lineAt(at), Problem: fmt.Sprintf("is not JSON: %v", err)}
}

func (r *jsonReader) lineAt(offset int64) int {
	offset = min(offset, int64(len(r.text)))
	if offset > r.upTo {
		r.line += bytes.Count(r.text[r.upTo:offset], []byte("\n"))
		r.upTo = offset
	}
	return r.line
}

// next reads one value; io.EOF means that there is none. Inside an object or
// list, the closing delimiter is a node of kind 0.
func (r *jsonReader) next() (*yaml.Node, error) {
	t, err := r.dec.Token()
	if err != nil {
		if errors.Is(err, io.EOF) && r.depth > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	n := &yaml.Node{Line: r.lineAt(r.dec.InputOffset()), Kind: yaml.ScalarNode}
	switch t := t.(type) {
	case json.Delim:
		return n, r.composite(n, t)
	case string:
		n.Tag, n.Value = "!!str", t
	case json.Number:
		n.Tag, n.Value = "!!float", t.String()
		if _, err := strconv.ParseInt(n.Value, 10, 64); err == nil {
			n.Tag = "!!int"
		}
	case bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(t)
	case nil:
		n.Tag, n.Value = "!!null", "null"
	}
	return n, nil
}

func (r *jsonReader) composite(n *yaml.Node, open json.Delim) error {
	switch open {
	case '{':
		n.Kind, n.Tag = yaml.MappingNode, "!!map"
	case '[':
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
	default:
		n.Kind = 0
		return nil
	}
	r.depth++
	defer func() { r.depth-- }()
	if r.depth > maxDepth {
		return fmt.Errorf("nested more than %d levels deep", maxDepth)
	}
	for {
		e, err := r.next()
		if err != nil {
			return err
		}
		if e.Kind == 0 {
			return nil
		}
		n.Content = append(n.Content, e)
	}
}

// FromJSON returns a JSON value as YAML: block style, keys in the order of the
// input, two spaces of indent.
func FromJSON(text []byte) ([]byte, error) {
	nodes, problem := jsonNodes(text)
	if problem != nil {
		problem.File = "JSON"
		return nil, problem
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	for _, n := range nodes {
		if err := enc.Encode(n); err != nil {
			return nil, fmt.Errorf("write YAML: %w", err)
		}
	}
	if err := enc.Close(); err != nil {
		return nil, fmt.Errorf("write YAML: %w", err)
	}
	return out.Bytes(), nil
}
