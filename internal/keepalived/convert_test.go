package keepalived

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

const first = `! pair of proxies
global_defs {
    vrrp_version 3
    router_id LVS_DEVEL
}
vrrp_sync_group VG_1 {
    group {
        outside
        inside
    }
    notify /etc/keepalived/notify.sh root
}
vrrp_instance inside {
    interface eth1
    virtual_router_id 52
    virtual_ipaddress { 172.16.101.100/24 dev eth1 }
}
vrrp_instance outside
{
    state MASTER
    interface eth0
    virtual_router_id 51   # of this pair
    priority 200
    advert_int 0.1
    preempt_delay 30
    unicast_src_ip 192.168.4.4
    unicast_peer {
        192.168.4.5
    }
    authentication {
        auth_type PASS
        auth_pass secret
    }
    virtual_ipaddress {
        192.168.4.100/24
        172.16.102.100/24 dev eth2
    }
    track_interface {
        eth1 weight -50
    }
    garp_master_delay 1
}
virtual_server 10.0.0.1 80 {
    delay_loop 6
}
`

func TestImport(t *testing.T) {
	second := strings.NewReplacer("priority 200", "priority 100", "192.168.4.4", "192.168.4.5").Replace(first)
	r, err := Import([]File{{"proxy-a", "a.conf", strings.NewReader(first)}, {"proxy-b", "b.conf", strings.NewReader(second)}}, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Groups) != 1 {
		t.Fatalf("%d groups", len(r.Groups))
	}
	g := r.Groups[0]
	if err := g.Validate(); err != nil {
		t.Error(err)
	}
	s := g.Spec
	if g.ObjectName() != "vg-1" || s.HaVip != netip.MustParseAddr("192.168.4.100") || s.VRID != 51 || g.Interval() != 100*time.Millisecond ||
		!g.Preempts() || g.PreemptAfter() != 30*time.Second || s.Transport != "" || s.Checksum != intent.ChecksumRFC5798 {
		t.Errorf("%s: %+v", g.ObjectName(), s)
	}
	if len(s.Members) != 2 || s.Members[0] != (intent.Member{Node: "proxy-a", Priority: 200}) || s.Members[1] != (intent.Member{Node: "proxy-b", Priority: 100}) {
		t.Errorf("members %+v", s.Members)
	}
	if track := g.Track(intent.TrackENI); track.Effect != intent.EffectLower || track.By != 50 {
		t.Errorf("track %+v", track)
	}
	left := strings.Join(r.LeftOut, "\n")
	for _, want := range []string{
		"a.conf:4: router_id LVS_DEVEL", "a.conf:11: notify /etc/keepalived/notify.sh root: set ha.notify", "address 172.16.101.100 on eth1: give it to the attachment",
		"address 172.16.102.100 on eth2", "authentication: VRRP version 3 has none", "garp_master_delay 1", "a.conf:43: virtual_server 10.0.0.1 80", "instance inside: group vg-1 moves all",
	} {
		if !strings.Contains(left, want) {
			t.Errorf("what is left out lacks %q:\n%s", want, left)
		}
	}
	if strings.Contains(left, "secret") {
		t.Error("a password is told")
	}
}

func TestImportOfOneInstance(t *testing.T) {
	r, err := Import([]File{{"p", "k.conf", strings.NewReader("vrrp_instance VI_1 {\n interface eth0\n virtual_router_id 7\n nopreempt\n virtual_ipaddress {\n 10.0.0.9\n }\n track_interface {\n eth1\n eth2 weight 5\n }\n}\n")}}, "")
	if err != nil {
		t.Fatal(err)
	}
	g := r.Groups[0]
	if g.ObjectName() != "vi-1" || g.Preempts() || g.Interval() != time.Second || g.Spec.Transport != intent.TransportMulticast || g.Track(intent.TrackENI).Effect != intent.EffectFault {
		t.Errorf("%+v", g.Spec)
	}
	left := strings.Join(r.LeftOut, "\n")
	for _, want := range []string{"version 2, which is not spoken", "eth2 weight 5: an interface that works raises no priority", "group vi-1: the other members"} {
		if !strings.Contains(left, want) {
			t.Errorf("what is left out lacks %q:\n%s", want, left)
		}
	}
}

func TestSyntax(t *testing.T) {
	for _, text := range []string{"vrrp_instance a {\n", "}\n", "{\n"} {
		if _, err := Import([]File{{"p", "k.conf", strings.NewReader(text)}}, ""); !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), "k.conf") {
			t.Errorf("%q: error %v", text, err)
		}
	}
}

func FuzzImport(f *testing.F) {
	f.Add(first)
	f.Add("a { b { c } } }")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := Import([]File{{"p", "k.conf", strings.NewReader(text)}}, "eth0")
		if (r == nil) == (err == nil) {
			t.Errorf("%v and %v", r, err)
		}
	})
}
