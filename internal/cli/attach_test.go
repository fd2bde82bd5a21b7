package cli

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

func TestAttachRequest(t *testing.T) {
	b := newBench(t)
	b.control.warnings = []string{"it hides 172.16.101.0/24 of host-a"}
	code, _, stderr := b.run("attach", "--subnet", "172.16.101.0/24,172.16.102.0/24", "--subnet", "172.16.103.7", "--vpc", "acme", "--group", "blue",
		"--eni", "proxy-a:mac=02:42:ac:10:65:04", "--eni", "proxy-b:pci=0000:00:05.0,address=172.16.101.9/24,address=fd00::9/64,gateway=172.16.101.1",
		"--name", "orders", "--pods", "10.244.1.5,10.244.2.0/24", "--nodes", "host-a,host-b", "--snat-address", "172.16.101.10",
		"--gre-key", "0xf0000001", "--scope", "pods", "--allow-overlap", "--dry-run")
	if code != codeOK || stderr != "warning: it hides 172.16.101.0/24 of host-a\n" {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	req := b.control.applied
	if !req.GetDryRun() || !req.GetCreateOnly() {
		t.Errorf("dry run %v, create only %v; want both", req.GetDryRun(), req.GetCreateOnly())
	}
	got, err := fromStruct(req.GetObjects()[0])
	if err != nil {
		t.Fatal(err)
	}
	key := uint32(0xf0000001)
	want := &intent.Attachment{
		TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindAttachment},
		Metadata: intent.Metadata{Name: "orders", Revision: 17}, // the fake has added it
		Spec: intent.AttachmentSpec{
			VPC: "acme", CIDRs: prefixes("172.16.101.0/24", "172.16.102.0/24", "172.16.103.7/32"), Group: "blue", Scope: intent.ScopePods,
			Pods: prefixes("10.244.1.5/32", "10.244.2.0/24"), Nodes: []string{"host-a", "host-b"},
			ENIs: []intent.ENI{
				{Node: "proxy-a", MAC: "02:42:ac:10:65:04"},
				{Node: "proxy-b", PCI: "0000:00:05.0", Addresses: prefixes("172.16.101.9/24", "fd00::9/64"), Gateway: netip.MustParseAddr("172.16.101.1")},
			},
			SNATAddress: netip.MustParseAddr("172.16.101.10"), GREKey: &key, AllowOverlap: true,
		},
	}
	opts := cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.IgnoreFields(intent.Attachment{}, "Status")}
	if diff := cmp.Diff(intent.Object(want), got, opts); diff != "" {
		t.Error(diff)
	}
}

func TestAttachAgain(t *testing.T) {
	b := newBench(t)
	b.control.outcome = apiv1.Outcome_OUTCOME_UNCHANGED
	if code, out, _ := b.run(strings.Fields(attachOrders)...); code != codeOK || out != "attachment/acme-172-16-101-0-24 unchanged\n" {
		t.Errorf("exit code %d, answer %q", code, out)
	}
}

func TestENITextReadsBack(t *testing.T) {
	for _, text := range []string{
		"mac=02:42:ac:10:65:04", "proxy-a:mac=02:42:ac:10:65:04", "name=eth1", "p:pci=0000:00:05.0",
		"p:name=eth1,address=172.16.101.9/24,address=fd00::9/64,gateway=172.16.101.1",
	} {
		var l eniList
		if err := l.Set(text); err != nil {
			t.Errorf("%s: %v", text, err)
		} else if got := l.String(); got != text {
			t.Errorf("%s is printed as %s", text, got)
		}
	}
}

func TestDefaultName(t *testing.T) {
	long := strings.Repeat("v", 63)
	for _, tt := range []struct {
		vpc     string
		subnets []string
		want    string
	}{
		{"acme", []string{"172.16.101.0/24"}, "acme-172-16-101-0-24"},
		{"acme", []string{"172.16.101.0/24", "10.0.0.0/8"}, "acme-10-0-0-0-8-"},
		{"acme", []string{"10.0.0.0/8", "172.16.101.0/24"}, "acme-10-0-0-0-8-"},
		{"acme", []string{"fd00:1::/64"}, "acme-fd00-1---64-"},
		{long, []string{"172.16.101.0/24"}, long[:54] + "-"},
	} {
		got := defaultName(tt.vpc, prefixes(tt.subnets...))
		if !strings.HasPrefix(got, tt.want) || len(got) > maxName {
			t.Errorf("%s %v: %s, want %s…", tt.vpc, tt.subnets, got, tt.want)
		}
		if strings.HasSuffix(tt.want, "-") && len(got) != len(tt.want)+8 {
			t.Errorf("%s %v: %s has no hash", tt.vpc, tt.subnets, got)
		}
	}
	if a, b := defaultName("acme", prefixes("10.0.0.0/8", "172.16.0.0/16")), defaultName("acme", prefixes("172.16.0.0/16", "10.0.0.0/8")); a != b {
		t.Errorf("the order of subnets changes the name: %s, %s", a, b)
	}
	if a, b := defaultName("acme", prefixes("fd00:0:1::/64")), defaultName("acme", prefixes("fd00::1:0:0:0/64")); a == b {
		t.Errorf("two subnets have one name: %s", a)
	}
}
