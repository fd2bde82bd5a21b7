package tunnel

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// FuzzENIFile feeds what an earlier agent, or a crash, has left of an interface's
// state: it is set aside, or can be written and read again as the same.
func FuzzENIFile(f *testing.F) {
	const mac = "02:00:00:00:00:01"
	files := eniFiles{dir: f.TempDir(), log: slog.New(slog.DiscardHandler)}
	sample, err := json.Marshal(eniFile{MAC: mac, Netns: "vpx-a", Name: "eth1", OwnName: "eth1", OwnUp: true, Phase: inside,
		Addresses: []eniAddress{{Prefix: netip.MustParsePrefix("172.16.101.10/24"), Broadcast: netip.MustParseAddr("172.16.101.255")}},
		Routes:    []eniRoute{{Table: 254, Dst: netip.MustParsePrefix("0.0.0.0/0"), Type: kernel.RouteUnicast, Via: netip.MustParseAddr("172.16.101.1"), Protocol: 4}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sample)
	f.Add(sample[:len(sample)/2])
	f.Add([]byte(`{"mac":"02:00:00:00:00:01","addresses":[{"prefix":""}]}`))
	f.Add([]byte(`{"mac":"02:00:00:00:00:01","netns":"vpx-a","name":"eth1","ownName":"eth1","phase":"inside","addresses":[]}`))
	// Its name of the file is the same.
	f.Add(bytes.Replace(sample, []byte(mac), []byte("02:00:00-00:00:01"), 1))
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(files.path(mac), text, 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := files.all()
		if err != nil {
			t.Fatal(err)
		}
		s := all[mac]
		if len(all) == 0 {
			if _, err := os.Stat(files.path(mac)); err == nil {
				t.Fatal("a damaged file stays in its place")
			}
			return
		}
		if s == nil || len(all) != 1 {
			t.Fatalf("the file is taken for that of %v", all)
		}
		if err := files.put(s); err != nil {
			t.Fatal(err)
		}
		again, err := files.get(mac)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(s, again, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); d != "" {
			t.Error(d)
		}
	})
}
