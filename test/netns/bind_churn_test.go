package netns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

const (
	churnPods  = 2000
	churnEvery = 20 * time.Millisecond // 50 a second
	// churnFor is how long pods come and go: as long as a ring of tests can
	// afford. churnEnv gives another time, such as 2m.
	churnFor = 15 * time.Second
	churnEnv = "VPCPROXY_CHURN"
)

// crowd is a great many pods in one machine: addresses that are routed to it.
type crowd struct {
	*topo.Machine
	first netip.Addr
}

// newCrowd routes a range of addresses to a pod's machine.
func (w *world) newCrowd(t *testing.T) *crowd {
	t.Helper()
	host := w.Hosts[0]
	pod := host.Pods[0]
	c := &crowd{Machine: pod.Machine, first: netip.MustParseAddr("10.245.0.0")}
	// By one neighbor, not by one for each: a kernel holds 1,024 of them
	// (gc_thresh3, net/ipv4/arp.c).
	typeLines(t, host.Machine, "ip route add 10.245.0.0/20 via "+pod.Address.String()+" dev "+pod.Veth)
	typeLines(t, pod.Machine, "ip route add local 10.245.0.0/20 dev lo")
	w.put(t, host.Name, fmt.Sprintf(`kind: Node
metadata: {name: %s}
spec:
  roles: [function]
  underlayAddress: %s
  tunnelAddress: %s
`, host.Name, host.Underlay, fmt.Sprintf(hostTunnel, 80)))
	return c
}

func (c *crowd) pod(i int) netip.Addr {
	b := c.first.As4()
	binary.BigEndian.PutUint16(b[2:], uint16(i))
	return netip.AddrFrom4(b)
}

// churner binds and unbinds pods of a crowd.
type churner struct {
	*testing.T
	w     *world
	c     *crowd
	rpc   vpcproxyv1alpha1connect.BindServiceClient
	bound []string // tenant by pod; "" if not bound
	binds []time.Duration
}

func (ch *churner) bind(i int, tenant string) {
	ch.Helper()
	start := time.Now()
	_, err := ch.rpc.Bind(ch.Context(), connect.NewRequest(&apiv1.BindRequest{
		PodIp: ch.c.pod(i).String(), Attachments: []string{tenant}, Owner: fmt.Sprint(start.UnixNano()),
	}))
	if err != nil {
		ch.Fatalf("bind %s to %s: %v", ch.c.pod(i), tenant, err)
	}
	ch.binds = append(ch.binds, time.Since(start))
	ch.bound[i] = tenant
}

func (ch *churner) unbind(i int) {
	ch.Helper()
	if _, err := ch.rpc.Unbind(ch.Context(), connect.NewRequest(&apiv1.UnbindRequest{PodIp: ch.c.pod(i).String()})); err != nil {
		ch.Fatalf("unbind %s: %v", ch.c.pod(i), err)
	}
	ch.bound[i] = ""
}

// ask is a pod's first connection: from the same port each time, so that what
// an earlier pod of the address has left behind would be met.
func (ch *churner) ask(i int, tenant string) error {
	ctx, cancel := context.WithTimeout(ch.Context(), 20*time.Second)
	defer cancel()
	s, err := dialFrom(ctx, ch.c.Machine, netip.AddrPortFrom(ch.c.pod(i), 30000))
	if err != nil {
		return fmt.Errorf("pod %s of %s: %w", ch.c.pod(i), tenant, err)
	}
	return errors.Join(wrong(s.answer, tenant, ch.w.Proxies[0].ENIs[tenant].Address.Addr()), s.Close())
}

// TestBindChurn has 2,000 bound pods of two tenants, 50 of which a second end
// and make room for others of either tenant at their addresses.
func TestBindChurn(t *testing.T) {
	w := newWorld(t, boundLayout)
	w.attach(t, "red", redKey)
	w.attach(t, "blue", blueKey)
	c := w.newCrowd(t)
	for _, h := range w.Hosts {
		w.startAgent(t, h.Machine, "function", "bind: {linger: 1s}")
	}
	for _, p := range w.Proxies {
		w.startAgent(t, p.Machine, "proxy")
	}
	w.settle(t)
	host := w.Hosts[0]
	a := w.agents[host.Name]
	before := fingerprint(t, host.Machine)
	ch := &churner{T: t, w: w, c: c, rpc: a.binder(t), bound: make([]string, churnPods)}
	tenants := []string{"red", "blue"}
	random := rand.New(rand.NewPCG(5, 2))
	start := time.Now()
	for i := range churnPods {
		ch.bind(i, tenants[i%2])
	}
	t.Logf("%d pods bound in %v", churnPods, time.Since(start))
	astray := w.watch(t, w.Router, host.Name, toPrefix(topo.Subnet))

	ch.binds = nil
	ch.churn(random, tenants)
	slices.Sort(ch.binds)
	t.Logf("%d binds beside %d pods: median %v, p99 %v, longest %v", len(ch.binds), churnPods,
		ch.binds[len(ch.binds)/2], ch.binds[len(ch.binds)*99/100], ch.binds[len(ch.binds)-1])
	if n, found := astray.Count(); n > 0 {
		t.Errorf("%d packets of bound pods went by the underlay: %v", n, headers(found))
	}
	for tenant, server := range w.servers {
		eni, attached := w.Proxies[0].ENIs[tenant]
		for _, source := range server.Seen() {
			if !attached || source.Addr() != eni.Address.Addr() {
				t.Fatalf("server %s saw %s", tenant, source)
			}
		}
	}
	if n := a.resync(t); n != 0 {
		t.Errorf("the loop found %d objects to change after all that", n)
	}

	start = time.Now()
	for i := range churnPods {
		if ch.bound[i] != "" {
			ch.unbind(i)
		}
	}
	t.Logf("unbound in %v", time.Since(start))
	eventually(t, soon, func(ctx context.Context) error {
		now, err := host.Fingerprint(ctx)
		if err == nil && now != before {
			err = fmt.Errorf("before the first binding:\n%s\nafter the last:\n%s", before, now)
		}
		return err
	})
	noZonedFlows(t, host.Machine)
	if left := look(t, host.Machine, "ls /var/lib/vpcproxy/bindings"); left != "" {
		t.Errorf("records are left: %s", left)
	}
}

func (ch *churner) churn(random *rand.Rand, tenants []string) {
	limit := churnFor
	if s := os.Getenv(churnEnv); s != "" {
		var err error
		if limit, err = time.ParseDuration(s); err != nil {
			ch.Fatalf("%s: %v", churnEnv, err)
		}
	}
	var asking sync.WaitGroup
	busy := make([]sync.Mutex, churnPods) // a pod ends when it is done
	ticker := time.NewTicker(churnEvery)
	defer ticker.Stop()
	end := time.Now().Add(limit)
	for time.Now().Before(end) {
		<-ticker.C
		i, tenant := random.IntN(churnPods), tenants[random.IntN(2)]
		if !busy[i].TryLock() {
			continue
		}
		if random.IntN(2) == 0 { // otherwise moved in one step
			ch.unbind(i)
		}
		ch.bind(i, tenant)
		asking.Go(func() {
			defer busy[i].Unlock()
			if err := ch.ask(i, tenant); err != nil {
				ch.Error(err)
			}
		})
	}
	asking.Wait()
}
