package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// Minimal returns the least file that makes a node with these roles, with
// examples where only the operator can know.
func Minimal(set []intent.Role) string {
	var b strings.Builder
	b.WriteString("# Keys left out have their defaults: see `vpcproxyd config reference`.\n")
	names := make([]string, 0, len(set))
	for _, r := range set {
		names = append(names, string(r))
	}
	fmt.Fprintf(&b, "roles: [%s]\n", strings.Join(names, ", "))
	b.WriteString("controller:\n")
	if slices.Contains(set, intent.RoleController) {
		b.WriteString("  listen: :9443\n")
	} else {
		b.WriteString("  address: https://controller.example:9443\n")
	}
	return b.String()
}

const referenceHead = `# vpcproxyd's configuration: every key with its default. Keys of no use to this
# node's roles may stay.
#
# A flag is over its environment variable, that over this file, and this file
# over the defaults. Flags and variables take lists with commas.
`

// Reference returns a file that says what the defaults say, and what each key
// means. Only roles is for the operator to fill in.
func Reference() string {
	var b strings.Builder
	b.WriteString(referenceHead)
	var open []string
	for _, s := range settings {
		path := strings.Split(s.key, ".")
		groups := path[:len(path)-1]
		shared := 0
		for shared < min(len(open), len(groups)) && open[shared] == groups[shared] {
			shared++
		}
		b.WriteString("\n")
		for depth := shared; depth < len(groups); depth++ {
			fmt.Fprintf(&b, "%s%s:\n", indent(depth), groups[depth])
		}
		open = groups
		in := indent(len(groups))
		for _, line := range wrap(s.doc, 78-len(in)) {
			fmt.Fprintf(&b, "%s# %s\n", in, line)
		}
		fmt.Fprintf(&b, "%s# --%s, %s\n", in, s.flag(), s.env())
		fmt.Fprintf(&b, "%s%s: %s\n", in, path[len(path)-1], s.yamlDefault())
	}
	return b.String()
}

func indent(depth int) string { return strings.Repeat("  ", depth) }

func (s setting) yamlDefault() string {
	switch {
	case s.codec.list:
		return "[" + s.def + "]"
	case s.def == "":
		return `""`
	}
	return s.def
}

// wrap breaks a text into lines of at most width bytes, at spaces.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for w := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(w) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += w
	}
	return append(lines, line)
}
