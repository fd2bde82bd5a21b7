package strictyaml

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseValues(t *testing.T) {
	tests := []struct {
		name, text string
		want       []any
	}{
		{"nothing", "", nil},
		{"comments and empty documents", "# a\n---\n---\n# b\n", nil},
		{"two documents", "a: x\n---\nb: [1, true]\n", []any{
			map[string]any{"a": "x"},
			map[string]any{"b": []any{json.Number("1"), true}},
		}},
		{"exact numbers", "a: 9007199254740993\nb: 0x3fff\nc: 1.50\nd: 18446744073709551616", []any{map[string]any{
			"a": json.Number("9007199254740993"), "b": json.Number("16383"), "c": json.Number("1.50"), "d": json.Number("18446744073709551616"),
		}}},
		{"words stay strings", "a: yes\nb: 2026-11-21\nc: 02:42:10:65:04:05\nd: \"1\"", []any{map[string]any{
			"a": "yes", "b": "2026-11-21", "c": "02:42:10:65:04:05", "d": "1",
		}}},
		{"anchor", "a: &x {k: v}\nb: *x\n", []any{map[string]any{"a": map[string]any{"k": "v"}, "b": map[string]any{"k": "v"}}}},
		{"JSON with tabs and surrogates", "{\n\t\"a\": \"\\ud83d\\ude00\",\n\t\"b\": [1.25]}", []any{
			map[string]any{"a": "😀", "b": []any{json.Number("1.25")}},
		}},
		{"JSON stream", "{\"a\":\t1}\n{\"a\": 2}", []any{map[string]any{"a": json.Number("1")}, map[string]any{"a": json.Number("2")}}},
		{"YAML flow mapping", "{a: 1}", []any{map[string]any{"a": json.Number("1")}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			docs, err := Parse("f", []byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			var got []any
			for _, d := range docs {
				got = append(got, d.Value)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct {
		name, text string
		line       int
		problem    string
	}{
		{"repeated key", "a: 1\nb: 2\na: 3\n", 3, "a appears twice; first on line 1"},
		{"repeated nested key", "s:\n  a: 1\n  a: 3\n", 3, "s.a appears twice"},
		{"repeated JSON key", "{\"a\": 1,\n\"a\": 2}", 2, "a appears twice"},
		{"null", "a:\nb: 1\n", 1, "a: is empty or null"},
		{"number as key", "1: a\n", 1, "not a string"},
		{"merge key", "x: &x {k: v}\ny:\n  <<: *x\n", 3, "merge key"},
		{"infinity", "a: .inf\n", 1, "not a plain decimal"},
		{"tag", "a: !!binary aGk=\n", 1, "tag !!binary"},
		{"parser", "a: 1\nb: [\nc: 1\n", 2, "is not YAML"},
		{"scanner", "a: 1\nb: c: d\n", 2, "is not YAML"},
		{"JSON syntax", "{\"a\": 1,\n\"b\" 2}", 2, "is not JSON"},
		{"JSON cut short", "{\"a\": 1,\n", 2, "is not JSON"},
		{"JSON too deep", strings.Repeat("[", 100) + strings.Repeat("]", 100), 1, "64 levels"},
		{"alias bomb", aliasBomb(), 0, "too large"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f", []byte(tt.text))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("error %v, want an *Error", err)
			}
			if tt.line != 0 && e.Line != tt.line || !strings.Contains(e.Problem, tt.problem) {
				t.Errorf("line %d: %s; want line %d: … %s …", e.Line, e.Problem, tt.line, tt.problem)
			}
		})
	}
}

// aliasBomb is 10^9 values in a few lines.
func aliasBomb() string {
	var b strings.Builder
	b.WriteString("a0: &a0 x\n")
	for i := 1; i <= 9; i++ {
		prev := "*a" + string(rune('0'+i-1))
		b.WriteString("a" + string(rune('0'+i)) + ": &a" + string(rune('0'+i)) + " [" + strings.Repeat(prev+", ", 9) + prev + "]\n")
	}
	return b.String()
}

func TestLine(t *testing.T) {
	docs, err := Parse("f", []byte("a: 1\n---\nkind: X\nspec:\n  list:\n  - mac: a\n  - mac: b\n"))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{
		"": 3, "kind": 3, "spec": 4, "spec.list[1]": 7, "spec.list[1].mac": 7, "spec.list[0].gateway": 6,
		"spec.missing": 4, "other.thing": 3,
	} {
		if got := docs[1].Line(path); got != want {
			t.Errorf("Line(%q) = %d, want %d", path, got, want)
		}
	}
}

func TestFromJSON(t *testing.T) {
	got, err := FromJSON([]byte(`{"z":"1","a":{"n":4294967295,"s":"true","l":["10.0.0.0/8"],"e":[]},"m":"02:42:ac:10:65:04"}`))
	if err != nil {
		t.Fatal(err)
	}
	want := "z: \"1\"\na:\n  n: 4294967295\n  s: \"true\"\n  l:\n    - 10.0.0.0/8\n  e: []\nm: 02:42:ac:10:65:04\n"
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
