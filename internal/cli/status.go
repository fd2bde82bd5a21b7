package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

const statusLong = `Status shows on one screen how the platform does, as the controller knows it.

With --node-socket, and where no controller is configured or answers on its
default socket, it shows how this machine does, as its node agent knows it.`

func (a *app) statusCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Show how the platform does, or this machine",
		Long:  statusLong,
		Args:  noArgs,
	}
	out := addFormat(c, formatJSON, formatYAML)
	c.RunE = func(c *cobra.Command, _ []string) error {
		ctx, cancel := timeout(c, callTimeout)
		defer cancel()
		if c.Flags().Changed("node-socket") {
			return a.nodeStatus(ctx, out)
		}
		err := a.platformStatus(ctx, out)
		chosen := c.Flags().Changed("controller") || os.Getenv(controllerEnv) != ""
		if unavailable(err) && !chosen {
			local := a.nodeStatus(ctx, out)
			if unavailable(local) {
				return errors.Join(err, local)
			}
			return local
		}
		return err
	}
	return c
}

// The answers of `status -o json`. Their keys are part of what scripts rely on.
type (
	platformJSON struct {
		Controller string     `json:"controller"`
		Version    string     `json:"version"`
		Revision   int64      `json:"revision"`
		Held       string     `json:"held"`
		Nodes      []nodeJSON `json:"nodes"`
	}
	nodeJSON struct {
		Name            string           `json:"name"`
		Roles           []string         `json:"roles"`
		Version         string           `json:"version"`
		Connected       bool             `json:"connected"`
		LastSeen        *time.Time       `json:"lastSeen,omitempty"`
		Revision        int64            `json:"revision"`
		InSync          bool             `json:"inSync"`
		Held            string           `json:"held"`
		UnderlayAddress string           `json:"underlayAddress"`
		TunnelAddress   string           `json:"tunnelAddress"`
		Attachments     []attachmentJSON `json:"attachments"`
		Interfaces      []interfaceJSON  `json:"interfaces"`
		Problems        []string         `json:"problems"`
	}
	attachmentJSON struct {
		Name    string `json:"name"`
		Role    string `json:"role"`
		Ready   bool   `json:"ready"`
		Message string `json:"message"`
	}
	interfaceJSON struct {
		Name       string   `json:"name"`
		MAC        string   `json:"mac"`
		PCI        string   `json:"pci"`
		Addresses  []string `json:"addresses"`
		Attachment string   `json:"attachment"`
	}
	localJSON struct {
		nodeJSON
		IntentSource string     `json:"intentSource"`
		Kinds        []kindJSON `json:"kinds"`
	}
	kindJSON struct {
		Kind     string   `json:"kind"`
		Wanted   int32    `json:"wanted"`
		Actual   int32    `json:"actual"`
		Pending  int32    `json:"pending"`
		Writes   int64    `json:"writes"`
		Repaired int64    `json:"repaired"`
		Errors   []string `json:"errors"`
	}
)

func nodeJSONOf(r *apiv1.NodeReport) nodeJSON {
	n := nodeJSON{
		Name: r.GetNode(), Roles: list(r.GetRoles()), Version: r.GetVersion(), Connected: r.GetConnected(), Revision: r.GetRevision(),
		InSync: r.GetInSync(), Held: r.GetHeld(), UnderlayAddress: r.GetUnderlayAddress(), TunnelAddress: r.GetTunnelAddress(),
		Attachments: []attachmentJSON{}, Interfaces: []interfaceJSON{}, Problems: list(r.GetProblems()),
	}
	if r.GetLastSeen() != nil {
		t := r.GetLastSeen().AsTime()
		n.LastSeen = &t
	}
	for _, at := range r.GetAttachments() {
		n.Attachments = append(n.Attachments, attachmentJSON{at.GetName(), at.GetRole(), at.GetReady(), at.GetMessage()})
	}
	for _, i := range r.GetInterfaces() {
		n.Interfaces = append(n.Interfaces, interfaceJSON{i.GetName(), i.GetMac(), i.GetPci(), list(i.GetAddresses()), i.GetAttachment()})
	}
	return n
}

// list keeps an empty list from becoming null.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func (a *app) platformStatus(ctx context.Context, out *format) error {
	client, err := a.control()
	if err != nil {
		return err
	}
	v, err := a.view(ctx, client)
	if err != nil {
		return err
	}
	if out.word == "" {
		return a.write(v.platform(), nil)
	}
	s := v.status
	answer := platformJSON{Controller: a.controller, Version: s.GetVersion(), Revision: s.GetRevision(), Held: s.GetHeld(), Nodes: []nodeJSON{}}
	for _, n := range s.GetNodes() {
		answer.Nodes = append(answer.Nodes, nodeJSONOf(n))
	}
	return a.write(encode(out, answer))
}

// platform is the one screen.
func (v *view) platform() []byte {
	var d description
	d.field("Controller", fmt.Sprintf("%s, version %s, revision %d", v.controller, v.status.GetVersion(), v.status.GetRevision()))
	inPlace := 0
	for _, o := range v.set.Attachments {
		if ready, all := v.ready(o); all > 0 && ready == all {
			inPlace++
		}
	}
	d.field("Attachments", fmt.Sprintf("%d, of which %d in place everywhere", len(v.set.Attachments), inPlace))
	connected, inSync := 0, 0
	for _, n := range v.status.GetNodes() {
		if n.GetConnected() {
			connected++
		}
		if nodeState(n) == "in sync" {
			inSync++
		}
	}
	d.field("Nodes", fmt.Sprintf("%d, of which %d connected and %d in sync", len(v.status.GetNodes()), connected, inSync))
	if held := v.status.GetHeld(); held != "" {
		d.field("Held", held+"; `vpcproxyctl controller confirm-removal` accepts it")
	}
	rows := append(make([][]string, 0, 1+len(v.status.GetNodes())), []string{"NAME", "ROLES", "STATE", "ATTACHMENTS", "REVISION", "SEEN", "VERSION"})
	problems := make([]string, 0, len(v.status.GetNodes()))
	for _, n := range v.status.GetNodes() {
		rows = append(rows, []string{
			n.GetNode(), strings.Join(n.GetRoles(), ","), nodeState(n), readyOf(n), strconv.FormatInt(n.GetRevision(), 10),
			v.seen(n.GetLastSeen()), orDash(n.GetVersion()),
		})
		problems = append(problems, nodeProblems(n)...)
	}
	d.section("Nodes", rows)
	d.lines("Problems", problems)
	return d.bytes()
}

// readyOf is how many of a node's attachments are in place there.
func readyOf(n *apiv1.NodeReport) string {
	ready := 0
	for _, at := range n.GetAttachments() {
		if at.GetReady() {
			ready++
		}
	}
	return fmt.Sprintf("%d/%d", ready, len(n.GetAttachments()))
}

func nodeProblems(n *apiv1.NodeReport) []string {
	var out []string
	if n.GetHeld() != "" {
		out = append(out, fmt.Sprintf("%s: %s; `vpcproxyctl node confirm-removal` on that machine accepts it", n.GetNode(), n.GetHeld()))
	}
	for _, p := range n.GetProblems() {
		out = append(out, n.GetNode()+": "+p)
	}
	for _, at := range n.GetAttachments() {
		if !at.GetReady() && at.GetMessage() != "" {
			out = append(out, fmt.Sprintf("%s: %s: %s", n.GetNode(), at.GetName(), at.GetMessage()))
		}
	}
	return out
}

func (a *app) nodeStatus(ctx context.Context, out *format) error {
	client, err := a.node()
	if err != nil {
		return err
	}
	resp, err := client.NodeStatus(ctx, connect.NewRequest(&apiv1.NodeStatusRequest{}))
	if err != nil {
		return a.nodeError(err)
	}
	if out.word == "" {
		return a.write(a.machine(resp.Msg), nil)
	}
	answer := localJSON{nodeJSON: nodeJSONOf(resp.Msg.GetReport()), IntentSource: resp.Msg.GetIntentSource(), Kinds: []kindJSON{}}
	for _, k := range resp.Msg.GetKinds() {
		answer.Kinds = append(answer.Kinds, kindJSON{
			k.GetKind(), k.GetWanted(), k.GetActual(), k.GetPending(), k.GetWrites(), k.GetRepaired(), list(k.GetErrors()),
		})
	}
	return a.write(encode(out, answer))
}

// machine is the one screen about this machine.
func (a *app) machine(s *apiv1.NodeStatusResponse) []byte {
	var d description
	r := s.GetReport()
	d.field("Node", r.GetNode())
	d.field("Roles", strings.Join(r.GetRoles(), ","))
	d.field("Intent", s.GetIntentSource())
	d.field("Underlay address", orDash(r.GetUnderlayAddress()))
	d.field("Tunnel address", orDash(r.GetTunnelAddress()))
	d.report(a, r)
	rows := append(make([][]string, 0, 1+len(s.GetKinds())), []string{"OBJECTS", "WANTED", "ACTUAL", "PENDING", "WRITES", "REPAIRED"})
	var problems []string
	for _, k := range s.GetKinds() {
		row := []string{k.GetKind()}
		for _, n := range []int64{int64(k.GetWanted()), int64(k.GetActual()), int64(k.GetPending()), k.GetWrites(), k.GetRepaired()} {
			row = append(row, strconv.FormatInt(n, 10))
		}
		rows = append(rows, row)
		for _, e := range k.GetErrors() {
			problems = append(problems, k.GetKind()+": "+e)
		}
	}
	d.section("Kernel", rows)
	d.lines("Kernel problems", problems)
	return d.bytes()
}
