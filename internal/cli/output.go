package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/manifest"
	"github.com/vpcproxy/vpcproxy/internal/strictyaml"
)

// format is the value of --output.
type format struct {
	word    string
	allowed []string
}

// The formats. The empty word is the one made for people.
const (
	formatWide = "wide"
	formatJSON = "json"
	formatYAML = "yaml"
	formatName = "name"
)

func (f *format) String() string { return f.word }

func (f *format) Type() string { return "format" }

func (f *format) Set(s string) error {
	if !slices.Contains(f.allowed, s) {
		return fmt.Errorf("%q is not a format; want %s", s, strings.Join(f.allowed, ", "))
	}
	f.word = s
	return nil
}

// addFormat adds -o to a command.
func addFormat(c *cobra.Command, allowed ...string) *format {
	f := &format{allowed: allowed}
	c.Flags().VarP(f, "output", "o", "`format` of the answer: "+strings.Join(allowed, ", "))
	completeFlag(c, "output", cobra.FixedCompletions(allowed, cobra.ShellCompDirectiveNoFileComp))
	return f
}

// completeFlag sets how a flag's value is completed.
func completeFlag(c *cobra.Command, flag string, f cobra.CompletionFunc) {
	_ = c.RegisterFlagCompletionFunc(flag, f) // fails only for a flag that c has not
}

// table lays out rows under a head, columns three spaces apart.
func table(rows [][]string) []byte {
	var out bytes.Buffer
	t := tabwriter.NewWriter(&out, 0, 0, 3, ' ', 0)
	for _, r := range rows {
		_, _ = fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	_ = t.Flush() // a bytes.Buffer takes everything
	var trimmed bytes.Buffer
	for line := range bytes.Lines(out.Bytes()) {
		trimmed.Write(bytes.TrimRight(line, " \n"))
		trimmed.WriteByte('\n')
	}
	return trimmed.Bytes()
}

// encode writes a value that is not an object as JSON or YAML. Its keys are
// part of what scripts rely on.
func encode(f *format, v any) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	if f.word == formatYAML {
		return strictyaml.FromJSON(out.Bytes())
	}
	return out.Bytes(), nil
}

// encodeObjects writes objects as JSON (one alone, several as a List), YAML or
// names.
func encodeObjects(f *format, objects []intent.Object, single bool) ([]byte, error) {
	switch f.word {
	case formatYAML:
		return manifest.EncodeYAML(objects...)
	case formatName:
		var b strings.Builder
		for _, o := range objects {
			b.WriteString(reference(o) + "\n")
		}
		return []byte(b.String()), nil
	}
	if single {
		return manifest.EncodeJSON(objects[0])
	}
	return manifest.EncodeJSONList(objects)
}

// reference is an object as commands take and print it: attachment/orders.
func reference(o intent.Object) string {
	return nounOf(o.ObjectKind()).singular + "/" + o.ObjectName()
}

// age is the time since t in one or two units: 4s, 2m10s, 3h12m, 5d.
func (a *app) age(t time.Time) string {
	d := a.Now().Sub(t).Truncate(time.Second)
	switch {
	case d < 0:
		return "0s" // the other machine's clock is ahead
	case d < time.Minute:
		return d.String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}

// orDash shows that there is nothing.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// textList joins values that can be printed.
func textList[T fmt.Stringer](list []T) string {
	words := make([]string, 0, len(list))
	for _, v := range list {
		words = append(words, v.String())
	}
	return strings.Join(words, ",")
}
