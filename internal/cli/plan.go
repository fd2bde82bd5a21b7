package cli

import (
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

// The answer of `plan -o json`. Its keys are part of what scripts rely on.
type (
	planJSON struct {
		Changes  []changeJSON `json:"changes"`
		Problems []string     `json:"problems"`
	}
	changeJSON struct {
		Kind     string   `json:"kind"`
		Op       string   `json:"op"`
		Key      string   `json:"key"`
		Reason   string   `json:"reason"`
		Commands []string `json:"commands"`
	}
)

func (a *app) planCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "plan",
		Short: "Print what would change in this machine's kernel, as commands",
		Long: "Plan compares what this machine's kernel should hold with what it holds, and prints the\n" +
			"difference as the commands that an operator would type. It changes nothing.",
		Args: noArgs,
	}
	out := addFormat(c, formatJSON, formatYAML)
	c.RunE = func(c *cobra.Command, _ []string) error {
		client, err := a.node()
		if err != nil {
			return err
		}
		ctx, cancel := timeout(c, kernelTimeout)
		defer cancel()
		resp, err := client.Plan(ctx, connect.NewRequest(&apiv1.PlanRequest{}))
		if err != nil {
			return a.nodeError(err)
		}
		if out.word != "" {
			return a.write(encode(out, planJSONOf(resp.Msg)))
		}
		for _, p := range resp.Msg.GetProblems() {
			a.message("problem: %s", p)
		}
		return a.write([]byte(planText(resp.Msg)), nil)
	}
	return c
}

func planJSONOf(p *apiv1.PlanResponse) planJSON {
	answer := planJSON{Changes: []changeJSON{}, Problems: list(p.GetProblems())}
	for _, c := range p.GetChanges() {
		answer.Changes = append(answer.Changes, changeJSON{c.GetKind(), c.GetOp(), c.GetKey(), c.GetReason(), list(c.GetCommands())})
	}
	return answer
}

// planText is a shell script whose comments say why.
func planText(p *apiv1.PlanResponse) string {
	if len(p.GetChanges()) == 0 {
		return "# nothing to change\n"
	}
	var b strings.Builder
	for _, c := range p.GetChanges() {
		fmt.Fprintf(&b, "# %s %s", c.GetOp(), c.GetKind())
		if c.GetReason() != "" {
			b.WriteString(": " + c.GetReason())
		}
		b.WriteString("\n")
		for _, command := range c.GetCommands() {
			b.WriteString(command + "\n")
		}
	}
	return b.String()
}
