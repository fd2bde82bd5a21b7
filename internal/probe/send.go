package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// The probe enters the machine by a pair of devices of its own: what is sent into
// one comes in by the other, as from a pod, through all of prerouting and forward.
const (
	outside = "vpcprobe0"
	inside  = "vpcprobe1"
	// Again and again, because the first packet may have to wait for ARP on
	// the way.
	sendEvery = 250 * time.Millisecond
	// settle is the time for what passes behind the first answer, such as the
	// way from the tunnel to the pod.
	settle = 100 * time.Millisecond
)

// Send sends the probe as if it came from the pod, until an answer to it has been
// seen by the capture or the time is over. The pod gets the answer, too, and
// ignores it.
func Send(ctx context.Context, h kernel.Host, c *Capture, during time.Duration) (err error) {
	if err := kernel.CreateVeth(ctx, h, outside, inside); err != nil {
		return err
	}
	own, err := h.In("")
	if err != nil {
		return err
	}
	out, err := own.LinkByName(ctx, outside)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, own.DeleteLink(context.WithoutCancel(ctx), out.Index)) }()
	if err := prepare(ctx, own); err != nil {
		return err
	}
	fd, err := socketIn(ctx, h)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	frame, err := c.flow.frame(ctx, own, out)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, during)
	defer cancel()
	to := &unix.SockaddrLinklayer{Protocol: swap(unix.ETH_P_ALL), Ifindex: out.Index, Halen: 6}
	again := time.NewTicker(sendEvery)
	defer again.Stop()
	for {
		if err := unix.Sendto(fd, frame, 0, to); err != nil {
			return fmt.Errorf("send the probe by %s: %w", outside, err)
		}
		if !c.await(ctx, again.C) {
			return nil
		}
	}
}

// await returns true when the probe is to be sent again.
func (c *Capture) await(ctx context.Context, again <-chan time.Time) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-again:
			return true
		case <-c.news:
			if !c.answered() {
				continue
			}
			t := time.NewTimer(settle)
			defer t.Stop()
			select {
			case <-ctx.Done():
			case <-t.C:
			}
			return false
		}
	}
}

// answered tells whether an answer, encapsulated or not, has come back.
func (c *Capture) answered() bool {
	for _, s := range c.Seen() {
		if s.Kind != Request && !s.Out {
			return true
		}
	}
	return false
}

// dummy is an address that nobody has (RFC 7600): a device without any refuses
// sources that are behind another one, even where rp_filter is loose
// (__fib_validate_source in net/ipv4/fib_frontend.c).
var dummy = netip.MustParsePrefix("192.0.0.8/32")

// prepare lets the probe in whatever the machine thinks of its source: the pod is
// behind another device. The kernel takes the maximum of this and of "all".
func prepare(ctx context.Context, own kernel.Handle) error {
	in, err := own.LinkByName(ctx, inside)
	if err != nil {
		return err
	}
	if err := own.AddAddress(ctx, kernel.Address{Link: in.Index, Prefix: dummy}); err != nil {
		return fmt.Errorf("prepare the probe's device: %w", err)
	}
	for name, value := range map[string]string{"rp_filter": "2", "forwarding": "1"} {
		if err := own.SetSysctl(ctx, "net/ipv4/conf/"+inside+"/"+name, value); err != nil {
			return fmt.Errorf("prepare the probe's device: %w", err)
		}
	}
	err = own.SetSysctl(ctx, "net/ipv6/conf/"+inside+"/accept_ra", "0")
	if err != nil && !errors.Is(err, kernel.ErrNotFound) { // a kernel without IPv6
		return fmt.Errorf("prepare the probe's device: %w", err)
	}
	return nil
}

func socketIn(ctx context.Context, h kernel.Host) (fd int, err error) {
	err = h.Run(ctx, "", func() error {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open a packet socket: %w", err)
		}
		return nil
	})
	return fd, err
}

// frame is the probe with an Ethernet header for the other device.
func (f Flow) frame(ctx context.Context, own kernel.Handle, out kernel.Link) ([]byte, error) {
	in, err := own.LinkByName(ctx, inside)
	if err != nil {
		return nil, err
	}
	var b []byte
	for _, mac := range []string{in.MAC, out.MAC} {
		var m [6]byte
		if _, err := fmt.Sscanf(mac, "%02x:%02x:%02x:%02x:%02x:%02x", &m[0], &m[1], &m[2], &m[3], &m[4], &m[5]); err != nil {
			return nil, fmt.Errorf("the probe's device has the Ethernet address %q: %w", mac, err)
		}
		b = append(b, m[:]...)
	}
	kind := []byte{0x08, 0x00} // ETH_P_IP
	if f.To.Addr().Is6() {
		kind = []byte{0x86, 0xdd} // ETH_P_IPV6
	}
	return append(append(b, kind...), f.request()...), nil
}
