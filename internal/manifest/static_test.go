package manifest

import (
	"net/netip"
	"strings"
	"testing"
)

func TestLoadDir(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "platform.yaml", platform)
	write(t, dir, "orders.yaml", orders)
	set, err := LoadDir(dir, netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	if set.Node("host-a") == nil || set.Group("blue") == nil || set.Attachment("orders") == nil {
		t.Errorf("objects are missing from %+v", set)
	}
}

func TestLoadDirEmptyAndAbsent(t *testing.T) {
	set, err := LoadDir(t.TempDir(), netip.Prefix{})
	if err != nil || len(set.Nodes)+len(set.Groups)+len(set.Attachments) != 0 {
		t.Errorf("empty directory: %+v, %v; want an empty set", set, err)
	}
	dir := t.TempDir()
	if set, err := LoadDir(dir+"/none", netip.Prefix{}); err == nil || set != nil {
		t.Errorf("absent directory: %v, %v; want an error and no set", set, err)
	}
	write(t, dir, "f.yaml", orders)
	if _, err := LoadDir(dir+"/f.yaml", netip.Prefix{}); err == nil || !strings.Contains(err.Error(), "is not a directory") {
		t.Errorf("file: %v", err)
	}
}

func TestLoadDirRefuses(t *testing.T) {
	tests := []struct{ name, from, to, want string }{
		{"no key", "  greKey: 4026531841\n", "", "orders.yaml:5: Attachment/orders: spec.greKey: is missing, and without a controller"},
		{"no group address", "  tunnelAddress: 100.64.0.1\n", "", "platform.yaml:17: ProxyGroup/blue: spec.tunnelAddress: is missing, and without a controller nobody allocates one; give a free address of 100.64.0.0/16"},
		{"no host address", "  tunnelAddress: 100.64.0.8\n", "", "platform.yaml:4: Node/host-a: spec.tunnelAddress: is missing"},
		{"unknown member", "node: proxy-a", "node: proxy-b", `platform.yaml:19: ProxyGroup/blue: spec.members[0].node: no Node is named "proxy-b"`},
		{"unknown group", "group: blue", "group: red", `orders.yaml:8: Attachment/orders: spec.group: no ProxyGroup is named "red"`},
		{"address twice", "100.64.0.8", "100.64.0.1", "spec.tunnelAddress: 100.64.0.1 is the tunnel address of"},
		{"pool", "172.16.101.0/24", "100.64.0.0/24", "orders.yaml:7: Attachment/orders: spec.cidrs[0]: 100.64.0.0/24 overlaps the tunnel address pool"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "platform.yaml", strings.Replace(platform, tt.from, tt.to, 1))
			write(t, dir, "orders.yaml", strings.Replace(orders, tt.from, tt.to, 1))
			set, err := LoadDir(dir, netip.Prefix{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant … %s …", err, tt.want)
			}
			if set != nil {
				t.Error("a set came with the error")
			}
		})
	}
}

func TestLoadDirPool(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "platform.yaml", platform)
	write(t, dir, "orders.yaml", strings.Replace(orders, "172.16.101.0/24", "100.64.9.0/24", 1))
	set, err := LoadDir(dir, netip.MustParsePrefix("100.127.0.0/16"))
	if err != nil || set.Pool.String() != "100.127.0.0/16" {
		t.Errorf("with another pool: %v", err)
	}
}
