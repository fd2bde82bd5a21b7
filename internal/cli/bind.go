package cli

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

const bindLong = `Bind makes a pod of this machine use attachments, and no others. It returns when the
pod's first packet will take the right path, or will be refused because an attachment has
no path yet. A pod that is bound already is moved in one step.`

// bindFlags name a pod and whom its address belongs to.
type bindFlags struct {
	pod   addrValue
	owner string
}

func (f *bindFlags) add(fs *pflag.FlagSet, owner string) {
	fs.Var(&f.pod, "pod-ip", "the pod's `address`")
	fs.StringVar(&f.owner, "owner", "", owner)
}

func (f *bindFlags) check(c *cobra.Command) error {
	if !f.pod.addr.IsValid() {
		return usagef("--pod-ip is missing; see `%s --help`", c.CommandPath())
	}
	return nil
}

func (a *app) bindCommand() *cobra.Command {
	var f bindFlags
	var attachments []string
	var link string
	c := &cobra.Command{
		Use:     "bind --pod-ip ADDRESS --attachment NAME",
		Short:   "Make a pod use attachments",
		Long:    bindLong,
		Example: "  vpcproxyctl bind --pod-ip 10.244.1.5 --attachment orders",
		Args:    noArgs,
	}
	f.add(c.Flags(), "`id` of whom the address belongs to now: an unbind for another owner does not touch the binding")
	c.Flags().StringSliceVar(&attachments, "attachment", nil, "`name` of an attachment; may be repeated, if their subnets do not overlap")
	c.Flags().StringVar(&link, "interface", "", "host's `end` of the pod's interface: the binding ends when it is gone")
	out := addFormat(c, formatJSON, formatYAML)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := f.check(c); err != nil {
			return err
		}
		if len(attachments) == 0 {
			return usagef("--attachment is missing; see `%s --help`", c.CommandPath())
		}
		client, err := a.binder()
		if err != nil {
			return err
		}
		ctx, cancel := timeout(c, callTimeout)
		defer cancel()
		resp, err := client.Bind(ctx, connect.NewRequest(&apiv1.BindRequest{
			PodIp: f.pod.addr.String(), Attachments: attachments, Interface: link, Owner: f.owner,
		}))
		if err != nil {
			return a.nodeError(err)
		}
		return a.printBound(resp.Msg.GetBinding(), out)
	}
	return c
}

func (a *app) printBound(b *apiv1.Binding, out *format) error {
	var names []string
	for _, at := range b.GetAttachments() {
		names = append(names, at.GetName())
		if !at.GetReady() {
			a.message("warning: attachment %s refuses packets for now: %s", at.GetName(), at.GetMessage())
		}
	}
	if out.word != "" {
		return a.write(encode(out, bindingJSONOf(b)))
	}
	return a.write(fmt.Appendf(nil, "pod %s bound to %s\n", b.GetPodIp(), strings.Join(names, ", ")), nil)
}

func (a *app) unbindCommand() *cobra.Command {
	var f bindFlags
	c := &cobra.Command{
		Use:   "unbind --pod-ip ADDRESS",
		Short: "Make a pod use no attachment, and end its flows",
		Args:  noArgs,
	}
	f.add(c.Flags(), "`id` of whom the address belonged to: a binding of another owner stays")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := f.check(c); err != nil {
			return err
		}
		client, err := a.binder()
		if err != nil {
			return err
		}
		ctx, cancel := timeout(c, callTimeout)
		defer cancel()
		resp, err := client.Unbind(ctx, connect.NewRequest(&apiv1.UnbindRequest{PodIp: f.pod.addr.String(), Owner: f.owner}))
		if err != nil {
			return a.nodeError(err)
		}
		done := "unbound"
		if !resp.Msg.GetRemoved() {
			done = "was not bound"
		}
		return a.write(fmt.Appendf(nil, "pod %s %s\n", f.pod.addr, done), nil)
	}
	return c
}

// Bindings as `get bindings -o json` writes them. The keys are part of what
// scripts rely on.
type (
	bindingJSON struct {
		PodIP       string                `json:"podIP"`
		Attachments []boundAttachmentJSON `json:"attachments"`
		Interface   string                `json:"interface,omitempty"`
		Owner       string                `json:"owner,omitempty"`
		Bound       time.Time             `json:"bound"`
	}
	boundAttachmentJSON struct {
		Name    string `json:"name"`
		Ready   bool   `json:"ready"`
		Message string `json:"message,omitempty"`
	}
)

func bindingJSONOf(b *apiv1.Binding) bindingJSON {
	out := bindingJSON{
		PodIP: b.GetPodIp(), Attachments: []boundAttachmentJSON{}, Interface: b.GetInterface(), Owner: b.GetOwner(), Bound: b.GetBound().AsTime(),
	}
	for _, at := range b.GetAttachments() {
		out.Attachments = append(out.Attachments, boundAttachmentJSON{at.GetName(), at.GetReady(), at.GetMessage()})
	}
	return out
}

func (a *app) getBindingsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "bindings [POD-IP]",
		Aliases: []string{"binding"},
		Short:   "List this machine's bindings, or print one (asks the node agent)",
		Args:    maybeOneArg("POD-IP"),
	}
	out := addFormat(c, formatJSON, formatYAML)
	c.RunE = func(c *cobra.Command, args []string) error {
		req := &apiv1.ListBindingsRequest{}
		if len(args) > 0 {
			pod, err := netip.ParseAddr(args[0])
			if err != nil {
				return usagef("%q is not a pod address such as 10.244.1.5", args[0])
			}
			req.PodIp = pod.String()
		}
		client, err := a.binder()
		if err != nil {
			return err
		}
		ctx, cancel := timeout(c, callTimeout)
		defer cancel()
		resp, err := client.ListBindings(ctx, connect.NewRequest(req))
		if err != nil {
			return a.nodeError(err)
		}
		list := resp.Msg.GetBindings()
		switch {
		case len(args) > 0 && len(list) == 0:
			return &exitError{codeNotFound, fmt.Errorf("pod %s is not bound; see `vpcproxyctl get bindings`", args[0])}
		case out.word != "":
			return a.write(encodeBindings(out, list, len(args) > 0))
		case len(list) == 0:
			a.message("no bindings; see `vpcproxyctl bind --help`")
			return nil
		}
		return a.write(table(a.bindingRows(list)), nil)
	}
	return c
}

func encodeBindings(out *format, list []*apiv1.Binding, single bool) ([]byte, error) {
	if single {
		return encode(out, bindingJSONOf(list[0]))
	}
	all := make([]bindingJSON, 0, len(list))
	for _, b := range list {
		all = append(all, bindingJSONOf(b))
	}
	return encode(out, all)
}

func (a *app) bindingRows(list []*apiv1.Binding) [][]string {
	rows := [][]string{{"POD", "ATTACHMENTS", "STATE", "INTERFACE", "OWNER", "AGE"}}
	for _, b := range list {
		var names, refused []string
		for _, at := range b.GetAttachments() {
			names = append(names, at.GetName())
			if !at.GetReady() {
				refused = append(refused, at.GetName()+": "+at.GetMessage())
			}
		}
		state := "ready"
		if len(refused) > 0 {
			state = "refused (" + strings.Join(refused, "; ") + ")"
		}
		rows = append(rows, []string{
			b.GetPodIp(), orDash(strings.Join(names, ",")), state, orDash(b.GetInterface()), orDash(b.GetOwner()), a.age(b.GetBound().AsTime()),
		})
	}
	return rows
}
