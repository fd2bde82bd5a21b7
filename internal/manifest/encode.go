package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/strictyaml"
)

// list is several objects in one JSON value.
type list struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Items      []intent.Object `json:"items"`
}

// EncodeJSON writes one object as indented JSON with the keys in the order
// apiVersion, kind, metadata, spec, status. Parse reads it back.
func EncodeJSON(o intent.Object) ([]byte, error) { return encodeJSON(o) }

// EncodeJSONList writes objects as the items of a List. Parse reads it back.
func EncodeJSONList(objects []intent.Object) ([]byte, error) {
	if objects == nil {
		objects = []intent.Object{}
	}
	return encodeJSON(list{APIVersion: intent.APIVersion, Kind: "List", Items: objects})
}

func encodeJSON(v any) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode object: %w", err)
	}
	return out.Bytes(), nil
}

// EncodeYAML writes objects as YAML documents with the keys in the order
// apiVersion, kind, metadata, spec, status. Parse reads them back.
func EncodeYAML(objects ...intent.Object) ([]byte, error) {
	var all bytes.Buffer
	for _, o := range objects {
		text, err := encodeJSON(o)
		if err != nil {
			return nil, err
		}
		all.Write(text)
	}
	return strictyaml.FromJSON(all.Bytes())
}
