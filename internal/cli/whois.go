package cli

import (
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

// The answer of `whois -o json`. Its keys are part of what scripts rely on.
type whoisJSON struct {
	Node       string     `json:"node"`
	Attachment string     `json:"attachment"`
	Protocol   string     `json:"protocol"`
	Source     string     `json:"source"`
	To         string     `json:"to"`
	Translated string     `json:"translated"`
	Started    *time.Time `json:"started,omitempty"`
	Ended      *time.Time `json:"ended,omitempty"`
	OutBytes   uint64     `json:"outBytes"`
	InBytes    uint64     `json:"inBytes"`
}

func (a *app) whoisCommand() *cobra.Command {
	var at string
	c := &cobra.Command{
		Use:   "whois IP:PORT",
		Short: "Tell whose connection an address and port is, or was",
		Long: "Whois finds the connections of this machine that have an address and port as their source,\n" +
			"before or after translation. Ask a proxy for what a server in a user VPC saw: the answer is a\n" +
			"function host's tunnel address and port. Ask that host for those: the answer is the pod.\n\n" +
			"Without --at it is what lives now, as the kernel has it. With --at it is what the NAT log\n" +
			"tells (natLog.directory).",
		Example: "  vpcproxyctl whois 172.16.101.10:40312 --at 2026-11-21T03:12:00Z",
		Args:    oneArg("IP:PORT"),
	}
	c.Flags().StringVar(&at, "at", "", "the `time`, as in 2026-11-21T03:12:00Z, or how long ago, as in 15m")
	out := addFormat(c, formatJSON, formatYAML)
	c.RunE = func(c *cobra.Command, args []string) error {
		req := &apiv1.WhoisRequest{Address: args[0]}
		if at != "" {
			when, err := a.moment(at)
			if err != nil {
				return usagef("--at: %w", err)
			}
			req.At = timestamppb.New(when)
		}
		client, err := a.node()
		if err != nil {
			return err
		}
		ctx, cancel := timeout(c, callTimeout)
		defer cancel()
		resp, err := client.Whois(ctx, connect.NewRequest(req))
		if err != nil {
			return a.nodeError(err)
		}
		if len(resp.Msg.GetConnections()) == 0 {
			return &exitError{codeNotFound, fmt.Errorf("no connection of %s has the source %s", resp.Msg.GetNode(), args[0])}
		}
		list := whoisOf(resp.Msg)
		if out.word != "" {
			return a.write(encode(out, list))
		}
		return a.write(whoisText(list), nil)
	}
	return c
}

// moment reads a time, or how long ago it was.
func (a *app) moment(s string) (time.Time, error) {
	if ago, err := time.ParseDuration(s); err == nil {
		return a.Now().Add(-ago.Abs()), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fmt.Errorf("%q is not a time such as 2026-11-21T03:12:00Z, nor a duration such as 15m", s)
	}
	return t, nil
}

func whoisOf(r *apiv1.WhoisResponse) []whoisJSON {
	moment := func(t *timestamppb.Timestamp) *time.Time {
		if t == nil {
			return nil
		}
		when := t.AsTime()
		return &when
	}
	list := make([]whoisJSON, 0, len(r.GetConnections()))
	for _, c := range r.GetConnections() {
		list = append(list, whoisJSON{
			Node: r.GetNode(), Attachment: c.GetAttachment(), Protocol: c.GetProtocol(), Source: c.GetSource(), To: c.GetTo(),
			Translated: c.GetTranslated(), Started: moment(c.GetStarted()), Ended: moment(c.GetEnded()),
			OutBytes: c.GetOutBytes(), InBytes: c.GetInBytes(),
		})
	}
	return list
}

func whoisText(list []whoisJSON) []byte {
	var b strings.Builder
	for _, c := range list {
		fmt.Fprintf(&b, "%s %s to %s as %s, attachment %s", c.Protocol, c.Source, c.To, c.Translated, c.Attachment)
		if c.Started != nil {
			fmt.Fprintf(&b, ", from %s", c.Started.Format(time.RFC3339))
		}
		if c.Ended != nil {
			fmt.Fprintf(&b, " to %s", c.Ended.Format(time.RFC3339))
		}
		if c.OutBytes+c.InBytes > 0 {
			fmt.Fprintf(&b, ", %d bytes out, %d in", c.OutBytes, c.InBytes)
		}
		b.WriteByte('\n')
	}
	return []byte(b.String())
}
