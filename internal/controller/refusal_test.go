package controller

import (
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

// attach makes an attachment with some fields of its spec replaced: pairs of a
// field and its JSON; "" leaves the field out.
func attach(name string, fields ...string) string {
	spec := map[string]string{
		"vpc": `"acme"`, "cidrs": `["172.16.101.0/24"]`, "group": `"g"`, "pods": `["10.244.1.5"]`, "enis": `[{"name":"eth1"}]`,
	}
	for i := 0; i < len(fields); i += 2 {
		spec[fields[i]] = fields[i+1]
		if fields[i+1] == "" {
			delete(spec, fields[i])
		}
	}
	var list []string
	for k, v := range spec {
		list = append(list, fmt.Sprintf("%q:%s", k, v))
	}
	return fmt.Sprintf(`{"kind":"Attachment","metadata":{"name":%q},"spec":{%s}}`, name, strings.Join(list, ","))
}

func node(name string, spec string) string {
	return fmt.Sprintf(`{"kind":"Node","metadata":{"name":%q},"spec":{%s}}`, name, spec)
}

const (
	invalid  = connect.CodeInvalidArgument
	missing  = connect.CodeNotFound
	conflict = connect.CodeAlreadyExists
)

var badRequests = map[string]struct {
	object string
	code   connect.Code
	// field is what the message must name; text is more of it.
	field, text string
}{
	// The object as such.
	"no kind":            {`{"metadata":{"name":"x"}}`, invalid, "objects[0]: kind", `"" is not known`},
	"unknown kind":       {`{"kind":"Pod","metadata":{"name":"x"}}`, invalid, "objects[0]: kind", `"Pod"`},
	"another version":    {`{"apiVersion":"vpcproxy.io/v9","kind":"Node","metadata":{"name":"x"},"spec":{}}`, invalid, "apiVersion", `"vpcproxy.io/v9" is not served`},
	"no metadata":        {`{"kind":"ProxyGroup","spec":{"members":[{"node":"p1"}]}}`, invalid, "metadata.name", "is missing"},
	"unknown field":      {attach("x", "cidr", `"172.16.1.0/24"`), invalid, "Attachment/x: spec.cidr", "is not a known field"},
	"unknown deep field": {attach("x", "enis", `[{"name":"eth1","ip":"1.2.3.4"}]`), invalid, "spec.enis[0].ip", "is not a known field"},
	"null":               {attach("x", "group", "null"), invalid, "spec.group", "is null"},
	"list for a string":  {attach("x", "group", `["g"]`), invalid, "spec.group", "want a string"},
	"string for a list":  {attach("x", "cidrs", `"172.16.1.0/24"`), invalid, "spec.cidrs", "want a list"},
	"string for an object": {
		`{"kind":"ProxyGroup","metadata":{"name":"x"},"spec":"p1"}`, invalid, "ProxyGroup/x: spec", "want an object"},
	"string for a boolean": {attach("x", "allowOverlap", `"yes"`), invalid, "spec.allowOverlap", "want true or false"},

	// Names.
	"upper-case name": {attach("Orders"), invalid, "metadata.name", "not a DNS label"},
	"long name":       {attach(strings.Repeat("x", 64)), invalid, "metadata.name", "at most 63 characters"},
	"path as name":    {attach("../node/f1"), invalid, "metadata.name", "not a DNS label"},
	"no vpc":          {attach("x", "vpc", ""), invalid, "spec.vpc", "is missing"},

	// Destinations.
	"no cidrs":                {attach("x", "cidrs", `[]`), invalid, "spec.cidrs", "is empty"},
	"malformed cidr":          {attach("x", "cidrs", `["172.16.101.0/33"]`), invalid, "spec.cidrs[0]", "is not an address or a CIDR"},
	"host name":               {attach("x", "cidrs", `["db.example"]`), invalid, "spec.cidrs[0]", "is not an address or a CIDR"},
	"host bits":               {attach("x", "cidrs", `["172.16.101.4/24"]`), invalid, "spec.cidrs[0]", "did you mean 172.16.101.0/24?"},
	"everything":              {attach("x", "cidrs", `["0.0.0.0/0"]`), invalid, "spec.cidrs[0]", "is every address"},
	"everything of IPv6":      {attach("x", "cidrs", `["::/0"]`), invalid, "spec.cidrs[0]", "is every address"},
	"metadata service":        {attach("x", "cidrs", `["169.254.169.254"]`), invalid, "spec.cidrs[0]", "metadata service"},
	"link-local":              {attach("x", "cidrs", `["169.254.0.0/24"]`), invalid, "spec.cidrs[0]", "link-local"},
	"IPv6":                    {attach("x", "cidrs", `["2001:db8::/64"]`), invalid, "spec.cidrs[0]", "is IPv6"},
	"loopback within":         {attach("x", "cidrs", `["126.0.0.0/7"]`), invalid, "spec.cidrs[0]", "loopback"},
	"multicast":               {attach("x", "cidrs", `["224.0.0.0/24"]`), invalid, "spec.cidrs[0]", "multicast"},
	"IPv4-mapped":             {attach("x", "cidrs", `["::ffff:172.16.101.0/120"]`), invalid, "spec.cidrs[0]", ""},
	"the pool":                {attach("x", "cidrs", `["100.64.9.0/24"]`), conflict, "spec.cidrs[0]", "overlaps the tunnel address pool 100.64.0.0/16"},
	"twice the same":          {attach("x", "cidrs", `["172.16.1.0/24","172.16.0.0/16"]`), invalid, "spec.cidrs[1]", "overlaps spec.cidrs[0]"},
	"underlay":                {attach("x", "cidrs", `["192.168.7.0/24"]`), conflict, "spec.cidrs[0]", "--allow-overlap"},
	"a node's address":        {attach("x", "cidrs", `["192.168.80.9"]`), conflict, "spec.cidrs[0]", "overlaps"},
	"pod range":               {attach("x", "cidrs", `["10.244.0.0/16"]`), conflict, "spec.cidrs[0]", "pod range 10.244.1.0/24 of node f1"},
	"a fixed tunnel address":  {attach("x", "cidrs", `["10.0.0.0/24"]`), conflict, "spec.cidrs[0]", "contains 10.0.0.4, the tunnel address of ProxyGroup fixed"},
	"the pods' other subnets": {attach("x", "enis", `[{"name":"eth2"}]`, "cidrs", `["172.16.0.0/16"]`), conflict, "spec.cidrs[0]", "overlaps 172.16.50.0/24 of attachment taken"},

	// Sources.
	"prewarmed host": {attach("x", "scope", `"host"`, "pods", "", "prewarm", "true"), invalid, "spec.prewarm", "the path of scope host is always prepared"},
	"pods and host":  {attach("x", "scope", `"host"`), invalid, "spec.pods", "scope host takes the whole host's traffic"},
	"unknown scope":  {attach("x", "scope", `"node"`), invalid, "spec.scope", `"node" is not known`},
	"all pods":       {attach("x", "pods", `["0.0.0.0/0"]`), invalid, "spec.pods[0]", "is every address"},
	"pods overlap":   {attach("x", "pods", `["10.244.1.0/24","10.244.1.5"]`), invalid, "spec.pods[1]", "overlaps spec.pods[0]"},
	"unknown node":   {attach("x", "nodes", `["f9"]`), missing, "spec.nodes[0]", `"f9"`},
	"proxy as nodes": {attach("x", "nodes", `["p1"]`), invalid, "spec.nodes[0]", "has not the role function"},

	// Group and interfaces.
	"unknown group":        {attach("x", "group", `"nope"`), missing, "spec.group", `no ProxyGroup is named "nope"`},
	"no eni":               {attach("x", "enis", `[]`), invalid, "spec.enis", "is empty"},
	"nameless eni":         {attach("x", "enis", `[{}]`), invalid, "spec.enis[0]", "names 0 of name, mac and pci"},
	"eni by two names":     {attach("x", "enis", `[{"name":"eth1","mac":"02:00:00:00:00:01"}]`), invalid, "spec.enis[0]", "names 2 of name, mac and pci"},
	"malformed mac":        {attach("x", "enis", `[{"mac":"02-42-ac"}]`), invalid, "spec.enis[0].mac", "is not a MAC address"},
	"malformed pci":        {attach("x", "enis", `[{"pci":"5"}]`), invalid, "spec.enis[0].pci", "is not a PCI address"},
	"interface as path":    {attach("x", "enis", `[{"name":".."}]`), invalid, "spec.enis[0].name", "is not an interface name"},
	"eni of a stranger":    {attach("x", "enis", `[{"node":"p1","name":"eth1"},{"node":"p2","name":"eth1"}]`), missing, "spec.enis[1].node", `"p2" is not a member of group g`},
	"eni taken":            {attach("x", "enis", `[{"name":"eth0"}]`, "pods", `["10.244.1.9"]`), conflict, "spec.enis[0]", "serves attachment taken already"},
	"loopback snat":        {attach("x", "snatAddress", `"127.0.0.1"`), invalid, "spec.snatAddress", "loopback"},
	"snat of IPv6":         {attach("x", "snatAddress", `"fe80::1%eth0"`), invalid, "spec.snatAddress", "is IPv6"},
	"malformed gateway":    {attach("x", "enis", `[{"name":"eth1","gateway":"172.16.101"}]`), invalid, "spec.enis[0].gateway", "is not an IP address"},
	"address without mask": {attach("x", "enis", `[{"name":"eth1","addresses":["172.16.101.9/0"]}]`), invalid, "spec.enis[0].addresses[0]", "prefix length 0"},

	// Keys.
	"key 0":         {attach("x", "greKey", "0"), invalid, "spec.greKey", "is 0"},
	"key of 33 bit": {attach("x", "greKey", "4294967296"), invalid, "spec.greKey", "is not a whole number from 0 to 4294967295"},
	"half a key":    {attach("x", "greKey", "1.5"), invalid, "spec.greKey", "is not a whole number"},
	"negative key":  {attach("x", "greKey", "-1"), invalid, "spec.greKey", "is not a whole number"},
	"taken key":     {attach("x", "greKey", "77", "cidrs", `["172.30.0.0/24"]`), conflict, "spec.greKey", "77 is the key of attachment taken"},

	// Groups and nodes.
	"group without members": {`{"kind":"ProxyGroup","metadata":{"name":"x"},"spec":{"members":[]}}`, invalid, "spec.members", "is empty"},
	"group of a function host": {
		`{"kind":"ProxyGroup","metadata":{"name":"x"},"spec":{"members":[{"node":"f1"}]}}`, invalid, "spec.members[0].node", `"f1" has not the role proxy`},
	"node without roles":   {node("x", `"roles":[]`), invalid, "spec.roles", "is empty"},
	"node of unknown role": {node("x", `"roles":["router"]`), invalid, "spec.roles[0]", `"router" is not known`},
	"node without address": {node("x", `"roles":["proxy"]`), invalid, "spec.underlayAddress", "is missing"},
	"node of IPv6":         {node("x", `"roles":["proxy"],"underlayAddress":"2001:db8::1"`), invalid, "spec.underlayAddress", "is not IPv4"},
	"node's taken address": {node("x", `"roles":["proxy"],"underlayAddress":"192.168.80.8"`), conflict, "spec.underlayAddress", "is the address of node f1"},
	"taken tunnel address": {node("x", `"roles":["function"],"underlayAddress":"192.168.80.10","tunnelAddress":"10.0.0.4"`), conflict, "spec.tunnelAddress", "ProxyGroup fixed"},
	"tunnel into a subnet": {node("x", `"roles":["function"],"underlayAddress":"192.168.80.10","tunnelAddress":"172.16.50.9"`), conflict, "spec.tunnelAddress", "is in 172.16.50.0/24 of attachment taken"},
	"malformed tunnel":     {node("x", `"roles":["function"],"underlayAddress":"192.168.80.10","tunnelAddress":"10.0.0.4/24"`), invalid, "spec.tunnelAddress", "is not an IP address"},
	"stale revision": {
		strings.Replace(attach("taken", "cidrs", `["172.16.51.0/24"]`), `{"name":"taken"}`, `{"name":"taken","revision":1}`, 1), connect.CodeAborted, "metadata.revision", "get it again"},
}

func TestBadRequests(t *testing.T) {
	r := start(t)
	r.platform(t)
	r.apply(t, `{"kind":"ProxyGroup","metadata":{"name":"fixed"},"spec":{"members":[{"node":"p2"}],"tunnelAddress":"10.0.0.4"}}`,
		attach("taken", "cidrs", `["172.16.50.0/24"]`, "enis", `[{"name":"eth0"}]`, "greKey", "77"))
	before := r.status(t).GetRevision()
	if len(badRequests) < 40 {
		t.Errorf("only %d bad requests are tried", len(badRequests))
	}
	for name, c := range badRequests {
		t.Run(name, func(t *testing.T) {
			ctx := transport.WithPeer(t.Context(), transport.Peer{Local: true})
			_, err := (&control{r.Controller}).Apply(ctx, connect.NewRequest(request(t, c.object)))
			wantCode(t, err, c.code, c.field+": ", c.text)
			if details := problemsOf(t, err); len(details) == 0 || !hasField(details, c.field) {
				t.Errorf("details %v do not name the field %q", details, c.field)
			}
		})
	}
	if after := r.status(t).GetRevision(); after != before {
		t.Errorf("refused requests went from revision %d to %d", before, after)
	}
	if n := strings.Count(r.log.String(), "msg=\"intent "); n != 8 {
		t.Errorf("%d audit lines; want one for each of the 8 objects that were accepted", n)
	}
}

func problemsOf(t *testing.T, err error) (list []*apiv1.FieldProblem) {
	t.Helper()
	ce, ok := err.(*connect.Error)
	if !ok {
		t.Fatalf("%T is no connect.Error", err)
	}
	for _, d := range ce.Details() {
		v, err := d.Value()
		if err != nil {
			t.Fatal(err)
		}
		p, ok := v.(*apiv1.FieldProblem)
		if !ok {
			t.Fatalf("detail is %T", v)
		}
		list = append(list, p)
	}
	return list
}

func hasField(list []*apiv1.FieldProblem, field string) bool {
	for _, p := range list {
		full := strings.Join(nonEmpty(p.GetObject(), p.GetField()), ": ")
		if strings.HasSuffix(full, field) && p.GetReason() != apiv1.FieldProblem_REASON_UNSPECIFIED && p.GetProblem() != "" {
			return true
		}
	}
	return false
}

func TestBadEnvelopes(t *testing.T) {
	r := start(t)
	r.platform(t)
	for name, c := range map[string]struct {
		req  *apiv1.ApplyRequest
		text string
	}{
		"nothing":     {&apiv1.ApplyRequest{}, "objects: is empty"},
		"null object": {&apiv1.ApplyRequest{Objects: []*structpb.Struct{nil}}, "objects[0]: kind"},
		"twice":       {request(t, orders, orders), "Attachment/orders: metadata.name: appears twice"},
		"two faults":  {request(t, attach("x", "cidrs", `[]`, "enis", `[]`)), "Attachment/x: spec.cidrs: is empty; give at least one subnet of the user VPC\nAttachment/x: spec.enis"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.control.Apply(t.Context(), connect.NewRequest(c.req))
			wantCode(t, err, connect.CodeInvalidArgument, c.text)
		})
	}
	big := attach("x", "vpc", fmt.Sprintf("%q", strings.Repeat("x", 5<<20)))
	_, err := r.control.Apply(t.Context(), connect.NewRequest(request(t, big)))
	wantCode(t, err, connect.CodeResourceExhausted)
}
