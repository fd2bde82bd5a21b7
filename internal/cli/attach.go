package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/structpb"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

const attachLong = `Attach makes subnets of a user VPC reachable: the proxies of a group hold an
interface (ENI) in the user's subnet, and the chosen pods reach it through them.

The same command again changes nothing and succeeds. A name that is taken by an
attachment with another specification is a conflict, and changes nothing: detach
first, or change it with ` + "`vpcproxyctl apply`" + `.`

const attachExample = `  vpcproxyctl attach --subnet 172.16.101.0/24 --vpc acme --group blue \
    --eni mac=02:42:ac:10:65:04 --pods 10.244.1.5 --wait`

// attachFlags is what the command line of attach says.
type attachFlags struct {
	name, vpc, group string
	subnets, pods    cidrList
	nodes            []string
	enis             eniList
	scope            format
	snat, havip      addrValue
	probe            addrValue
	key              keyValue
	allowOverlap     bool
	prewarm          bool
	dryRun           bool
	wait             waitFlags
}

func (a *app) attachCommand() *cobra.Command {
	f := &attachFlags{scope: format{allowed: []string{string(intent.ScopePods), string(intent.ScopeHost)}}}
	c := &cobra.Command{
		Use:     "attach --subnet CIDR --vpc VPC --group GROUP --eni [NODE:]mac=MAC",
		Short:   "Make subnets of a user VPC reachable",
		Long:    attachLong,
		Example: attachExample,
		Args:    noArgs,
	}
	f.add(c.Flags())
	out := addFormat(c, formatWide, formatJSON, formatYAML, formatName)
	completeFlag(c, "group", a.completeNames(intent.KindProxyGroup))
	completeFlag(c, "nodes", a.completeNames(intent.KindNode))
	completeFlag(c, "scope", cobra.FixedCompletions(f.scope.allowed, cobra.ShellCompDirectiveNoFileComp))
	c.RunE = func(c *cobra.Command, _ []string) error { return a.attach(c, f, out) }
	return c
}

func (f *attachFlags) add(fs *pflag.FlagSet) {
	fs.Var(&f.subnets, "subnet", "destination `CIDR` in the user VPC; may be repeated, or several with commas")
	fs.StringVar(&f.vpc, "vpc", "", "`name` of the user VPC; subnets of different VPCs may overlap")
	fs.StringVar(&f.group, "group", "", "proxy `group` that serves it")
	fs.Var(&f.enis, "eni", "`interface` in the user's subnet: [NODE:]mac=…, name=… or pci=…, and if it brings none,\n,address=CIDR and ,gateway=ADDRESS; one for each proxy of the group")
	fs.StringVar(&f.name, "name", "", "`name` of the attachment (default: made of VPC and subnet)")
	fs.Var(&f.pods, "pods", "pod addresses or `CIDRs` that use it (default: those that are bound, see `vpcproxyctl bind`)")
	fs.BoolVar(&f.prewarm, "prewarm", false, "prepare the path on function hosts before a pod is bound")
	fs.Var(&f.scope, "scope", "whose traffic it takes: `pods`, or host for all that a function host sends (default pods)")
	fs.StringSliceVar(&f.nodes, "nodes", nil, "function `hosts` that carry it (default: all that have such pods)")
	fs.Var(&f.snat, "snat-address", "source `address` that the user VPC sees (default: the interface's own)")
	fs.Var(&f.havip, "havip", "`address` in the user's subnet that moves with the group's active proxy: the source that the user VPC sees")
	fs.Var(&f.probe, "probe", "`address` in the user VPC that answers ping while it is reachable: a proxy that gets no answer is less fit to be active")
	fs.Var(&f.key, "gre-key", "GRE `key` (default: a random one; none for scope host)")
	fs.BoolVar(&f.allowOverlap, "allow-overlap", false, "accept a subnet that hides a range of the platform from the pods")
	fs.BoolVar(&f.dryRun, "dry-run", false, "check and print what would be, change nothing")
	f.wait.add(fs, "until every node has it in place")
}

// attachment makes the object that the flags describe.
func (f *attachFlags) attachment() (*intent.Attachment, error) {
	for _, r := range []struct {
		flag    string
		missing bool
	}{
		{"--subnet", len(f.subnets.list) == 0}, {"--vpc", f.vpc == ""}, {"--group", f.group == ""}, {"--eni", len(f.enis.list) == 0},
	} {
		if r.missing {
			return nil, usagef("%s is missing; see `vpcproxyctl attach --help`", r.flag)
		}
	}
	if f.wait.wait && f.dryRun {
		return nil, usagef("--wait and --dry-run exclude each other: a dry run changes nothing to wait for")
	}
	name := f.name
	if name == "" {
		name = defaultName(f.vpc, f.subnets.list)
	}
	return &intent.Attachment{
		TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindAttachment},
		Metadata: intent.Metadata{Name: name},
		Spec: intent.AttachmentSpec{
			VPC: f.vpc, CIDRs: f.subnets.list, Group: f.group, Scope: intent.Scope(f.scope.word), Pods: f.pods.list,
			Nodes: f.nodes, ENIs: f.enis.list, SNATAddress: f.snat.addr, HaVip: f.havip.addr, Probe: f.probe.addr, GREKey: f.key.key, AllowOverlap: f.allowOverlap,
			Prewarm: f.prewarm,
		},
	}, nil
}

func (a *app) attach(c *cobra.Command, f *attachFlags, out *format) error {
	start := time.Now()
	want, err := f.attachment()
	if err != nil {
		return err
	}
	client, err := a.control()
	if err != nil {
		return err
	}
	object, err := toStruct(want)
	if err != nil {
		return err
	}
	ctx, cancel := timeout(c, callTimeout)
	defer cancel()
	resp, err := client.Apply(ctx, connect.NewRequest(&apiv1.ApplyRequest{
		Objects: []*structpb.Struct{object}, DryRun: f.dryRun, CreateOnly: true,
	}))
	if err != nil {
		return a.attachError(want.ObjectName(), err)
	}
	if n := len(resp.Msg.GetResults()); n != 1 {
		return fmt.Errorf("the controller answered with %d results for one object; its release is another one", n)
	}
	result := resp.Msg.GetResults()[0]
	a.warn(result.GetWarnings())
	made, err := fromStruct(result.GetObject())
	if err != nil {
		return err
	}
	if err := a.printApplied(out, []applied{{made, result.GetOutcome()}}, f.dryRun, true); err != nil {
		return err
	}
	name := made.ObjectName()
	switch {
	case f.dryRun:
		return nil
	case !f.wait.wait:
		a.message("Next: vpcproxyctl describe attachment %s", name)
		return nil
	}
	at, ok := made.(*intent.Attachment)
	if !ok {
		return fmt.Errorf("the controller answered with %s %s; its release is another one", made.ObjectKind(), name)
	}
	return a.waitAttached(c.Context(), client, at, f.wait.timeout, start)
}

func (a *app) waitAttached(ctx context.Context, client watcher, at *intent.Attachment, limit time.Duration, start time.Time) error {
	want := awaited{name: at.ObjectName(), revision: at.Metadata.Revision, exists: true}
	last, err := a.await(ctx, client, want, limit)
	if err != nil {
		return err
	}
	ready, hosts := 0, 0
	for _, n := range last.GetNodes() {
		if !n.GetReady() {
			continue // a host that is away, as its line said
		}
		ready++
		if n.GetRole() == string(intent.RoleFunction) {
			hosts++
		}
	}
	a.message("attachment %s is in place on %s, after %s", at.ObjectName(), count(ready, "node"), since(start))
	if hosts == 0 {
		a.message("warning: no function host carries it; check --pods and --nodes against `vpcproxyctl get nodes -o wide`")
		return nil
	}
	from := "a function host"
	switch {
	case at.EffectiveScope() == intent.ScopePods && len(at.Spec.Pods) == 0:
		a.message("Next: on a function host, vpcproxyctl bind --pod-ip ADDRESS --attachment %s", at.ObjectName())
		return nil
	case at.EffectiveScope() == intent.ScopePods:
		from = "a pod in " + textList(at.Spec.Pods)
	}
	a.message("Next: connect from %s to an address in %s", from, textList(at.Spec.CIDRs))
	return nil
}

// since is how long a command took.
func since(start time.Time) time.Duration { return time.Since(start).Round(10 * time.Millisecond) }

// flagOf is the flag that a field of an attachment came from.
var flagOf = map[string]string{
	"metadata.name": "--name", "spec.cidrs": "--subnet", "spec.vpc": "--vpc", "spec.group": "--group", "spec.enis": "--eni",
	"spec.pods": "--pods", "spec.scope": "--scope", "spec.nodes": "--nodes", "spec.snatAddress": "--snat-address",
	"spec.greKey": "--gre-key", "spec.prewarm": "--prewarm", "spec.haVip": "--havip", "spec.probe": "--probe",
}

// attachError puts flags where the controller names fields.
func (a *app) attachError(name string, err error) error {
	problems := fieldProblems(err)
	if len(problems) == 0 {
		return a.controlError(err)
	}
	var out []error
	for _, p := range problems {
		flag, ok := flagOf[topField(p.Field)]
		if flag == "--name" { // it may not have been given, but derived
			flag += " " + name
		}
		if ok {
			out = append(out, fmt.Errorf("%s: %s", flag, p.Problem))
			continue
		}
		out = append(out, problemError(p))
	}
	return &exitError{exitCode(err), errors.Join(out...)}
}

// problemError is a problem that may be of the object as a whole.
func problemError(p *intent.FieldError) error {
	if p.Field == "" {
		return fmt.Errorf("%s: %s", p.Object, p.Problem)
	}
	return p
}

// topField cuts spec.enis[0].mac to spec.enis.
func topField(field string) string {
	dots := 0
	for i, r := range field {
		if r == '.' {
			dots++
		}
		if r == '[' || dots == 2 {
			return field[:i]
		}
	}
	return field
}

// count is "1 node", "2 nodes".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
