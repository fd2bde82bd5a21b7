package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// forger makes adverts as somebody on the proxies' link could.
type forger struct {
	*pair
	keys vrrp.Keys
	next time.Time // whose sequence comes next
}

func (f *forger) source(i int) netip.Addr { return f.Proxies[i].Underlay }

// advert is a message from one proxy to the other, sealed or not.
func (f *forger) advert(t *testing.T, from int, vrid, priority uint8, keys vrrp.Keys) []byte {
	t.Helper()
	var sealer *vrrp.Sealer
	if keys != nil {
		var err error
		if sealer, err = vrrp.NewSealer(keys, 1, func() time.Time { return f.next }); err != nil {
			t.Fatal(err)
		}
		f.next = f.next.Add(time.Microsecond)
	}
	a := vrrp.Advertisement{VRID: vrid, Priority: priority, Interval: f.interval, Addresses: []netip.Addr{outerVip}}
	b, err := a.Append(nil, f.source(from), f.source(1-from), vrrp.RFC9568, sealer)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// send puts a message on the proxies' link.
func (f *forger) send(t *testing.T, from int, ttl byte, message []byte) {
	t.Helper()
	packet := traffic.IPv4{Source: f.source(from), Destination: f.source(1 - from), Protocol: protocolVRRP}.Packet(message)
	packet[8] = ttl // whose checksum the kernel fills in (raw(7))
	if err := traffic.Inject(f.Router, packet); err != nil {
		t.Fatal(err)
	}
}

// TestForgedAdverts has a neighbor forge, replay and damage adverts of a pair
// that has keys: each is counted by what is wrong with it, and moves nothing.
func TestForgedAdverts(t *testing.T) {
	key := bytes.Repeat([]byte{0x5a}, 32)
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, fmt.Appendf(nil, "1 %x\n", key), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPair(t, 300*time.Millisecond, "ha: {keys: "+file+"}", metricsConfig)
	f := &forger{pair: p, keys: vrrp.Keys{1: key}, next: time.Now()}
	recorded := f.record(t)
	stranger := vrrp.Keys{1: bytes.Repeat([]byte{1}, 32)}
	const passive = 1 // the active one hears what the standby seems to say
	damaged := f.advert(t, passive, 51, 255, f.keys)
	damaged[len(damaged)-1] ^= 1
	for _, tc := range []struct {
		reason  string
		from    int
		ttl     byte
		message []byte
	}{
		{"auth_missing", passive, 255, f.advert(t, passive, 51, 255, nil)},
		{"auth_missing", passive, 255, f.advert(t, passive, 51, 0, nil)},
		{"auth_missing", 0, 255, f.advert(t, 0, 51, 0, nil)}, // the standby hears that the active one resigns
		{"auth_invalid", passive, 255, f.advert(t, passive, 51, 255, stranger)},
		{"vrid", passive, 255, f.advert(t, passive, 52, 255, f.keys)},
		{"ttl", passive, 254, f.advert(t, passive, 51, 255, f.keys)},
		{"truncated", passive, 255, f.advert(t, passive, 51, 255, nil)[:10]},
		{"checksum", passive, 255, damaged},
		{"auth_replay", 0, 255, recorded},
	} {
		hears := p.agents[p.Proxies[1-tc.from].Name]
		t.Run(fmt.Sprintf("%s at %s", tc.reason, hears.Name), func(t *testing.T) {
			labels := map[string]string{"reason": tc.reason}
			before, _ := value(f.scraped(t, hears), "vpcproxy_ha_adverts_discarded_total", labels)
			p.steady(t, func() {
				f.send(t, tc.from, tc.ttl, tc.message)
				hears.measures(t, sample{"vpcproxy_ha_adverts_discarded_total", labels, before + 1})
			})
		})
	}
}

// record returns an advert of the active proxy, as it was sent.
func (f *forger) record(t *testing.T) []byte {
	t.Helper()
	adverts := f.watch(t, f.Proxies[0].Machine, "eth0", func(p traffic.Packet) bool {
		header, _, ok := p.IPv4()
		return ok && p.Outgoing && header.Protocol == protocolVRRP
	})
	var recorded []byte
	eventually(t, soon, func(context.Context) error {
		n, packets := adverts.Count()
		if n == 0 {
			return errors.New("no advert was sent")
		}
		_, recorded, _ = packets[0].IPv4()
		return nil
	})
	return recorded
}

func (f *forger) scraped(t *testing.T, a *agent) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := a.scrape(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return families
}
