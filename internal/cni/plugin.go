// Package cni is a chained CNI plugin: it has the addresses that the plugins
// before it have given a pod bound to the pod's attachments, so that a pod never
// starts before its path. It keeps nothing, asks the node agent for all, and
// speaks the CNI specification up to version 1.1.
package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/kube/names"
)

// errNotAvailable is CNI's code for a plugin that cannot serve ADD (specification
// 1.1.0, section 2, STATUS).
const errNotAvailable = 50

// Main runs the plugin as the environment and standard input say, and exits.
func Main(release string) {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status}, version.All,
		"vpcproxy-cni "+release+": binds pods to attachments of user VPCs")
}

// call is one command of the runtime.
type call struct {
	*config
	pod   podArgs
	owner string
	bind  vpcproxyv1alpha1connect.BindServiceClient
	kube  vpcproxyv1alpha1connect.KubernetesServiceClient
}

// begin reads what the runtime says. Nothing is sent yet.
func begin(args *skel.CmdArgs) (*call, error) {
	c := &call{}
	var err error
	if c.config, err = parse(args.StdinData); err != nil {
		return nil, err
	}
	c.pod.IgnoreUnknown = true
	if err := types.LoadArgs(args.Args, &c.pod); err != nil {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "vpcproxy-cni: CNI_ARGS cannot be read", err.Error())
	}
	c.owner = c.ownerOf(args.ContainerID, args.IfName)
	address, err := transport.ParseAddress("unix://" + c.Socket)
	if err != nil {
		return nil, invalid("socket: %v", err)
	}
	client, err := transport.NewClient(address, nil)
	if err != nil {
		return nil, invalid("socket: %v", err)
	}
	c.bind = vpcproxyv1alpha1connect.NewBindServiceClient(client.HTTP, client.BaseURL, transport.ClientOptions())
	c.kube = vpcproxyv1alpha1connect.NewKubernetesServiceClient(client.HTTP, client.BaseURL, transport.ClientOptions())
	return c, nil
}

func (c *call) ownerOf(container, ifname string) string {
	return c.networkOwner() + container + "/" + ifname
}

// networkOwner is how owners of this network's bindings begin.
func (c *call) networkOwner() string {
	if len(c.Attachments) > 0 {
		return names.OwnerNetwork + c.Name + "/"
	}
	return names.OwnerCNI + c.Name + "/"
}

// skipped says whether the pod starts without us.
func (c *call) skipped() bool {
	return c.pod.K8S_POD_NAMESPACE != "" && slices.Contains(c.SkipNamespaces, string(c.pod.K8S_POD_NAMESPACE))
}

// failed tells the runtime what to do about an error of the agent.
func (c *call) failed(what string, err error) error {
	code := types.ErrInternal
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeNotFound:
		code = types.ErrTryAgainLater
	}
	return types.NewError(code, "vpcproxy-cni: "+what, fmt.Sprintf("agent at %s: %v", c.Socket, err))
}

// attachments returns those that the pod asks for.
func (c *call) attachments(ctx context.Context) ([]string, error) {
	if len(c.Attachments) > 0 {
		return slices.Sorted(slices.Values(c.Attachments)), nil
	}
	if c.pod.K8S_POD_NAME == "" {
		return nil, nil
	}
	req := &apiv1.PodAttachmentsRequest{
		Namespace: string(c.pod.K8S_POD_NAMESPACE), Name: string(c.pod.K8S_POD_NAME), Uid: string(c.pod.K8S_POD_UID),
	}
	if value, known := c.annotation(); known {
		req.Annotations = &apiv1.PodAnnotations{Attachment: value}
	}
	resp, err := c.kube.PodAttachments(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, c.failed(fmt.Sprintf("the attachments of pod %s/%s are not known", req.Namespace, req.Name), err)
	}
	return resp.Msg.GetAttachments(), nil
}

func add(args *skel.CmdArgs) error {
	c, err := begin(args)
	if err != nil {
		return err
	}
	result, err := c.result()
	if err != nil {
		return err
	}
	if !c.skipped() {
		ctx, cancel := context.WithTimeout(context.Background(), c.limit)
		defer cancel()
		wanted, err := c.attachments(ctx)
		if err != nil {
			return err
		}
		if err := c.bindAll(ctx, result, wanted); err != nil {
			return err
		}
	}
	return types.PrintResult(c.PrevResult, c.CNIVersion)
}

// bindAll binds all addresses of the pod, or none. A pod without attachments
// gets rid of what a former holder of its addresses may have left.
func (c *call) bindAll(ctx context.Context, r *types100.Result, wanted []string) error {
	list := addresses(r)
	if len(wanted) > 0 && len(list) == 0 {
		return invalid("the plugins before vpcproxy-cni gave the pod no address, and it asks for attachments")
	}
	for i, a := range list {
		var err error
		if len(wanted) == 0 {
			_, err = c.bind.Unbind(ctx, connect.NewRequest(&apiv1.UnbindRequest{PodIp: a.String()}))
		} else {
			_, err = c.bind.Bind(ctx, connect.NewRequest(&apiv1.BindRequest{
				PodIp: a.String(), Attachments: wanted, Interface: hostInterface(r), Owner: c.owner,
			}))
		}
		if err != nil {
			for _, bound := range list[:i] {
				_, undo := c.bind.Unbind(ctx, connect.NewRequest(&apiv1.UnbindRequest{PodIp: bound.String(), Owner: c.owner}))
				err = errors.Join(err, undo)
			}
			return c.failed(fmt.Sprintf("pod address %s cannot be bound to %s", a, strings.Join(wanted, ", ")), err)
		}
	}
	return nil
}

// addresses returns the pod's.
func addresses(r *types100.Result) []netip.Addr {
	var out []netip.Addr
	for _, ip := range r.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// hostInterface returns the host's end of the pod's interface, or "" if it has
// none of its own. A bridge outlives the pod.
func hostInterface(r *types100.Result) string {
	var found []string
	for _, i := range r.Interfaces {
		if _, err := os.Stat(filepath.Join("/sys/class/net", i.Name, "bridge")); i.Sandbox == "" && err != nil {
			found = append(found, i.Name)
		}
	}
	if len(found) != 1 {
		return ""
	}
	return found[0]
}

// bindings lists those of the pod, by whom the binding belongs to.
func (c *call) bindings(ctx context.Context, mine func(owner string) bool) ([]*apiv1.Binding, error) {
	resp, err := c.bind.ListBindings(ctx, connect.NewRequest(&apiv1.ListBindingsRequest{}))
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(resp.Msg.GetBindings(), func(b *apiv1.Binding) bool { return !mine(b.GetOwner()) }), nil
}

func (c *call) remove(ctx context.Context, mine func(owner string) bool) error {
	list, err := c.bindings(ctx, mine)
	if err != nil {
		return err
	}
	for _, b := range list {
		if _, err := c.bind.Unbind(ctx, connect.NewRequest(&apiv1.UnbindRequest{PodIp: b.GetPodIp(), Owner: b.GetOwner()})); err != nil {
			return err
		}
	}
	return nil
}

// del removes the pod's bindings. Without an agent there is nobody to ask: it
// ends a binding with its interface, and the next pod's ADD or the agent's look at
// Kubernetes removes what is left.
func del(args *skel.CmdArgs) error {
	c, err := begin(args)
	if err != nil {
		return err
	}
	if c.skipped() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.limit)
	defer cancel()
	err = c.remove(ctx, func(owner string) bool { return owner == c.owner })
	if connect.CodeOf(err) == connect.CodeUnavailable {
		_, _ = fmt.Fprintf(os.Stderr, "vpcproxy-cni: the agent at %s was not told that a pod has gone: %v\n", c.Socket, err)
		return nil
	}
	if err != nil {
		return c.failed("bindings cannot be removed", err)
	}
	return nil
}

func check(args *skel.CmdArgs) error {
	c, err := begin(args)
	if err != nil {
		return err
	}
	result, err := c.result()
	if err != nil {
		return err
	}
	if c.skipped() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.limit)
	defer cancel()
	wanted, err := c.attachments(ctx)
	if err != nil {
		return err
	}
	list, err := c.bindings(ctx, func(owner string) bool { return owner == c.owner })
	if err != nil {
		return c.failed("bindings cannot be listed", err)
	}
	held := map[string][]string{}
	for _, b := range list {
		for _, a := range b.GetAttachments() {
			held[b.GetPodIp()] = append(held[b.GetPodIp()], a.GetName())
		}
	}
	for _, a := range addresses(result) {
		if got := slices.Sorted(slices.Values(held[a.String()])); !slices.Equal(got, wanted) {
			return types.NewError(types.ErrInternal, fmt.Sprintf("vpcproxy-cni: pod address %s is bound to [%s], not to [%s]",
				a, strings.Join(got, ", "), strings.Join(wanted, ", ")), "")
		}
	}
	return nil
}

// gc removes the bindings of this network's pods that the runtime does not know.
func gc(args *skel.CmdArgs) error {
	c, err := begin(args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.limit)
	defer cancel()
	valid := map[string]bool{}
	for _, a := range c.ValidAttachments {
		valid[c.ownerOf(a.ContainerID, a.IfName)] = true
	}
	err = c.remove(ctx, func(owner string) bool { return strings.HasPrefix(owner, c.networkOwner()) && !valid[owner] })
	if err != nil {
		return c.failed("bindings cannot be removed", err)
	}
	return nil
}

func status(args *skel.CmdArgs) error {
	c, err := begin(args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.limit)
	defer cancel()
	if _, err := c.bindings(ctx, func(string) bool { return false }); err != nil {
		return types.NewError(errNotAvailable, "vpcproxy-cni: the node agent does not answer", fmt.Sprintf("agent at %s: %v", c.Socket, err))
	}
	return nil
}
