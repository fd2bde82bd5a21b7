package node

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/plan"
)

// TestManyProblemsAreFewLines: what thousands of attachments have at once is said of
// some, with the number of the others, when it comes and when it goes.
func TestManyProblemsAreFewLines(t *testing.T) {
	var out bytes.Buffer
	n := &Node{opts: Options{Log: slog.New(slog.NewTextHandler(&out, nil))}}
	var many plan.Plan
	for i := range 3 * maxProblems {
		many.Problems = append(many.Problems, plan.Problem{Attachment: fmt.Sprint("a", i), Message: "nobody is alive"})
	}
	for _, tc := range []struct {
		before, after plan.Plan
		lines         int
		want          string
	}{
		{plan.Plan{}, many, maxProblems + 1, `msg="problem more" attachments=40`},
		{many, many, 0, ""},
		{many, plan.Plan{}, maxProblems + 1, `msg="problem solved more" attachments=40`},
		{plan.Plan{}, plan.Plan{Problems: many.Problems[:1]}, 1, "msg=problem attachment=a0"},
	} {
		out.Reset()
		n.current = tc.before
		n.logProblems(tc.after)
		if got := strings.Count(out.String(), "\n"); got != tc.lines || !strings.Contains(out.String(), tc.want) {
			t.Errorf("%d lines, want %d with %q:\n%s", got, tc.lines, tc.want, out.String())
		}
	}
}
