package manifest

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

const platform = `apiVersion: vpcproxy.io/v1alpha1
kind: Node
metadata: {name: host-a}
spec:
  roles: [function]
  underlayAddress: 192.168.80.8
  tunnelAddress: 100.64.0.8
---
apiVersion: vpcproxy.io/v1alpha1
kind: Node
metadata: {name: proxy-a}
spec: {roles: [proxy], underlayAddress: 192.168.4.100}
---
apiVersion: vpcproxy.io/v1alpha1
kind: ProxyGroup
metadata: {name: blue}
spec:
  members:
  - node: proxy-a
  tunnelAddress: 100.64.0.1
`

const orders = `apiVersion: vpcproxy.io/v1alpha1
kind: Attachment
metadata:
  name: orders
spec:
  vpc: acme
  cidrs: [172.16.101.0/24]
  group: blue
  greKey: 4026531841
  pods: [10.244.1.5, 10.244.2.0/24]
  enis:
  - mac: 02:42:ac:10:65:04
    addresses: [172.16.101.9/24]
`

func ptr[T any](v T) *T { return &v }

var compareAddrs = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}),
}

func wantOrders() *intent.Attachment {
	return &intent.Attachment{
		TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindAttachment},
		Metadata: intent.Metadata{Name: "orders"},
		Spec: intent.AttachmentSpec{
			VPC: "acme", CIDRs: []netip.Prefix{netip.MustParsePrefix("172.16.101.0/24")}, Group: "blue",
			Pods:   []netip.Prefix{netip.MustParsePrefix("10.244.1.5/32"), netip.MustParsePrefix("10.244.2.0/24")},
			ENIs:   []intent.ENI{{MAC: "02:42:ac:10:65:04", Addresses: []netip.Prefix{netip.MustParsePrefix("172.16.101.9/24")}}},
			GREKey: ptr(uint32(4026531841)),
		},
	}
}

func TestParse(t *testing.T) {
	docs, err := Parse("orders.yaml", []byte(orders))
	if err != nil {
		t.Fatal(err)
	}
	if len(docs) != 1 {
		t.Fatalf("%d documents, want 1", len(docs))
	}
	if diff := cmp.Diff(intent.Object(wantOrders()), docs[0].Object, compareAddrs); diff != "" {
		t.Error(diff)
	}
}

func TestErrorsNamePlaceObjectAndField(t *testing.T) {
	tests := []struct {
		name, from, to string
		want           []string
	}{
		{"malformed CIDR", "cidrs: [172.16.101.0/24]", "cidrs: [172.16.101.0/33]",
			[]string{`f.yaml:7: Attachment/orders: spec.cidrs[0]: "172.16.101.0/33" is not an address or a CIDR`}},
		{"host bits", "cidrs: [172.16.101.0/24]", "cidrs: [172.16.101.4/24]",
			[]string{"f.yaml:7: Attachment/orders: spec.cidrs[0]: 172.16.101.4/24 has host bits set; did you mean 172.16.101.0/24?"}},
		{"unknown field", "  group: blue", "  gruop: blue",
			[]string{"f.yaml:8: Attachment/orders: spec.gruop: is not a known field"}},
		{"missing field", "  vpc: acme\n", "",
			[]string{"f.yaml:5: Attachment/orders: spec.vpc: is missing"}},
		{"deep field", "  - mac: 02:42:ac:10:65:04", "  - mac: 02-42",
			[]string{`f.yaml:12: Attachment/orders: spec.enis[0].mac: "02-42" is not a MAC address`}},
		{"two problems", "  vpc: acme\n  cidrs: [172.16.101.0/24]", "  vpc: Acme\n  cidrs: [0.0.0.0/0]",
			[]string{`f.yaml:6: Attachment/orders: spec.vpc: "Acme" is not a DNS label`, "f.yaml:7: Attachment/orders: spec.cidrs[0]: 0.0.0.0/0 is every address"}},
		{"key too large", "greKey: 4026531841", "greKey: 4294967296", []string{"f.yaml:9: Attachment/orders: spec.greKey: 4294967296 is not a whole number"}},
		{"fraction", "greKey: 4026531841", "greKey: 1.5", []string{"f.yaml:9: Attachment/orders: spec.greKey: 1.5 is not a whole number"}},
		{"repeated key", "  vpc: acme\n", "  vpc: acme\n  vpc: evil\n", []string{"f.yaml:7: spec.vpc appears twice; first on line 6"}},
		{"null", "  vpc: acme\n", "  vpc:\n", []string{"f.yaml:6: spec.vpc: is empty or null"}},
		{"unknown kind", "kind: Attachment", "kind: Service", []string{`f.yaml:2: kind: "Service" is not known`}},
		{"wrong version", "v1alpha1", "v1", []string{`f.yaml:1: Attachment/orders: apiVersion: "vpcproxy.io/v1" is not served`}},
		{"not YAML", "spec:", "spec: [", []string{"f.yaml:5: is not YAML"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f.yaml", []byte(strings.Replace(orders, tt.from, tt.to, 1)))
			if err == nil {
				t.Fatal("no error")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Errorf("%d lines, want %d:\n%v", len(lines), len(tt.want), err)
			}
			for i, want := range tt.want {
				if i < len(lines) && !strings.HasPrefix(lines[i], want) {
					t.Errorf("got  %s\nwant %s …", lines[i], want)
				}
			}
		})
	}
}

func TestLocateErrorOfAnotherChecker(t *testing.T) {
	docs, err := Parse("all.yaml", []byte(platform+"---\n"+orders))
	if err != nil {
		t.Fatal(err)
	}
	cause := &intent.FieldError{Object: "Attachment/orders", Field: "spec.group", Problem: "no ProxyGroup", Reason: intent.NotFound}
	located := docs[3].Locate(errors.Join(cause, errors.New("and more")))
	want := "all.yaml:29: Attachment/orders: spec.group: no ProxyGroup\nall.yaml:22: and more"
	if located.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", located, want)
	}
	if !errors.Is(located, cause) {
		t.Error("the cause is lost")
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func names(docs []*Document) []string {
	out := make([]string, 0, len(docs))
	for _, d := range docs {
		out = append(out, string(d.Object.ObjectKind())+"/"+d.Object.ObjectName())
	}
	return out
}

func TestLoadOrdersByReference(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a-orders.yaml", orders)
	write(t, dir, "b-platform.yml", platform)
	write(t, dir, ".b-platform.yml.swp.yaml", "not: [yaml")
	write(t, dir, "README.md", "not: [yaml")
	want := []string{"Node/host-a", "Node/proxy-a", "ProxyGroup/blue", "Attachment/orders"}

	docs, err := Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, names(docs)); diff != "" {
		t.Errorf("directory: %s", diff)
	}
	docs, err = Load("-", strings.NewReader(orders+"---\n"+platform))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, names(docs)); diff != "" {
		t.Errorf("standard input: %s", diff)
	}
	if _, err := Load(filepath.Join(dir, "none.yaml"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v, want os.ErrNotExist", err)
	}
}

func TestLoadRefusesDuplicates(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", orders)
	write(t, dir, "b.yaml", "\n"+orders)
	_, err := Load(dir, nil)
	want := filepath.Join(dir, "b.yaml") + ":5: Attachment/orders: metadata.name: is also at " + filepath.Join(dir, "a.yaml") + ":4; keep one"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestLoadReportsEveryFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", strings.Replace(orders, "acme", "Acme", 1))
	write(t, dir, "b.json", `{"kind": "Attachment"`)
	_, err := Load(dir, nil)
	if err == nil || !strings.Contains(err.Error(), "a.yaml:6: ") || !strings.Contains(err.Error(), "b.json:1: is not JSON") {
		t.Errorf("want a problem in a.yaml and one in b.json, got: %v", err)
	}
}

func TestEncodeReadsBack(t *testing.T) {
	docs, err := Parse("all.yaml", []byte(platform+"---\n"+orders))
	if err != nil {
		t.Fatal(err)
	}
	objects := make([]intent.Object, 0, len(docs))
	for _, d := range docs {
		objects = append(objects, d.Object)
	}
	asYAML, err := EncodeYAML(objects...)
	if err != nil {
		t.Fatal(err)
	}
	asList, err := EncodeJSONList(objects)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"YAML": asYAML, "JSON list": asList} {
		back, err := Parse(name, text)
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		for i, d := range back {
			if diff := cmp.Diff(objects[i], d.Object, compareAddrs); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
	}
}

func TestEncodeKeyOrder(t *testing.T) {
	a := wantOrders()
	a.Metadata.Revision = 7
	a.Status.GREKey = ptr(uint32(1))
	got, err := EncodeYAML(a)
	if err != nil {
		t.Fatal(err)
	}
	want := `apiVersion: vpcproxy.io/v1alpha1
kind: Attachment
metadata:
  name: orders
  revision: 7
spec:
  vpc: acme
  cidrs:
    - 172.16.101.0/24
  group: blue
  pods:
    - 10.244.1.5/32
    - 10.244.2.0/24
  enis:
    - mac: 02:42:ac:10:65:04
      addresses:
        - 172.16.101.9/24
  greKey: 4026531841
status:
  greKey: 1
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestListErrorsHavePlaces(t *testing.T) {
	text := "{\n\"kind\": \"List\",\n\"items\": [\n{\"apiVersion\": \"vpcproxy.io/v1alpha1\",\n\"kind\": \"Node\", \"metadata\": {\"name\": \"a\"},\n\"spec\": {\"roles\": [\"cook\"]}}]}"
	_, err := Parse("l.json", []byte(text))
	if err == nil || !strings.HasPrefix(err.Error(), `l.json:6: Node/a: spec.roles[0]: "cook" is not known`) {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(platform + "---\n" + orders))
	f.Add([]byte(`{"apiVersion":"vpcproxy.io/v1alpha1","kind":"List","items":[{"kind":"Node"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		docs, err := Parse("fuzz", text)
		if err != nil {
			return
		}
		for _, d := range docs {
			out, err := EncodeYAML(d.Object)
			if err != nil {
				t.Fatal(err)
			}
			back, err := Parse("again", out)
			if err != nil {
				t.Fatalf("%v in\n%s", err, out)
			}
			if diff := cmp.Diff(d.Object, back[0].Object, compareAddrs, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		}
	})
}
