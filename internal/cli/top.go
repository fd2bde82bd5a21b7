package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/diagnose"
)

// The answer of `top -o json`. Its keys are part of what scripts rely on.
type topJSON struct {
	Attachment  string             `json:"attachment"`
	InBytes     float64            `json:"inBytesPerSecond"`
	OutBytes    float64            `json:"outBytesPerSecond"`
	InPackets   float64            `json:"inPacketsPerSecond"`
	OutPackets  float64            `json:"outPacketsPerSecond"`
	Connections int                `json:"connections"`
	Busiest     []diagnose.PortUse `json:"busiest"`
}

func (a *app) topCommand() *cobra.Command {
	var whom witnessFlags
	var every time.Duration
	var watch bool
	c := &cobra.Command{
		Use:   "top",
		Short: "Show what passes through this machine's attachments now",
		Long: "Top measures for a moment what passes through each attachment's tunnel on this machine, and\n" +
			"shows it beside the connections and the use of SNAT ports toward the busiest destination.",
		Args: noArgs,
	}
	whom.add(c, a, false)
	c.Flags().DurationVar(&every, "interval", time.Second, "how long to measure, 100ms to 1m")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "go on until interrupted")
	out := addFormat(c, formatJSON, formatYAML)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if every < 100*time.Millisecond || every > time.Minute {
			return usagef("--interval: %s is not between 100ms and 1m", every)
		}
		w, err := whom.first(a)
		if err != nil {
			return err
		}
		before, err := traffic(c.Context(), w)
		for err == nil {
			select {
			case <-c.Context().Done():
				return nil
			case <-time.After(every):
			}
			var after *diagnose.Traffic
			if after, err = traffic(c.Context(), w); err != nil {
				break
			}
			rates := ratesOf(before, after)
			if out.word != "" {
				err = a.write(encode(out, rates))
			} else {
				err = a.write(topText(rates), nil)
			}
			if !watch {
				return err
			}
			before = after
		}
		return err
	}
	return c
}

func traffic(ctx context.Context, w witness) (*diagnose.Traffic, error) {
	ctx, cancel := context.WithTimeout(ctx, kernelTimeout)
	defer cancel()
	return ask[diagnose.Traffic](ctx, w, &apiv1.DiagnoseRequest{What: &apiv1.DiagnoseRequest_Traffic{Traffic: &apiv1.TrafficRequest{}}})
}

// ratesOf compares two looks; what was made anew between them counts from 0.
func ratesOf(before, after *diagnose.Traffic) []topJSON {
	seconds := after.Time.Sub(before.Time).Seconds()
	rate := func(was, is uint64) float64 {
		if is < was || seconds <= 0 {
			return 0
		}
		return float64(is-was) / seconds
	}
	out := []topJSON{}
	for _, n := range after.Attachments {
		var o diagnose.AttachmentTraffic
		if i := slices.IndexFunc(before.Attachments, func(b diagnose.AttachmentTraffic) bool { return b.Attachment == n.Attachment }); i >= 0 {
			o = before.Attachments[i]
		} else {
			o = n
		}
		out = append(out, topJSON{n.Attachment, rate(o.InBytes, n.InBytes), rate(o.OutBytes, n.OutBytes),
			rate(o.InPackets, n.InPackets), rate(o.OutPackets, n.OutPackets), n.Connections, n.Busiest})
	}
	slices.SortStableFunc(out, func(x, y topJSON) int {
		return cmp.Or(cmp.Compare(y.InBytes+y.OutBytes, x.InBytes+x.OutBytes), cmp.Compare(x.Attachment, y.Attachment))
	})
	return out
}

func topText(rates []topJSON) []byte {
	rows := [][]string{{"ATTACHMENT", "IN", "OUT", "PACKETS IN", "PACKETS OUT", "CONNECTIONS", "SNAT PORTS", "TOWARD"}}
	for _, r := range rates {
		ports, toward := "-", "-"
		if len(r.Busiest) > 0 {
			b := r.Busiest[0]
			ports, toward = fmt.Sprintf("%d of %d", b.Ports, b.Limit), b.Destination.String()
			if b.Exhausted > 0 {
				ports += fmt.Sprintf(", full in %s", b.Exhausted.Round(time.Second))
			}
		}
		rows = append(rows, []string{r.Attachment, bits(r.InBytes), bits(r.OutBytes), fmt.Sprintf("%.0f/s", r.InPackets), fmt.Sprintf("%.0f/s", r.OutPackets),
			fmt.Sprint(r.Connections), ports, toward})
	}
	return table(rows)
}

// bits is a rate in bits a second.
func bits(bytes float64) string {
	v, unit := bytes*8, ""
	for _, u := range []string{"k", "M", "G"} {
		if v < 1000 {
			break
		}
		v, unit = v/1000, u
	}
	return fmt.Sprintf("%.1f %sbit/s", v, unit)
}
