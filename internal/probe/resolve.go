package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// resolvePatience is longer than the kernel waits before it asks again (retrans_time,
// 1 s), so that one lost request is no verdict.
const resolvePatience = 1500 * time.Millisecond

// discardPort is where a packet goes that nobody needs to read (RFC 863).
const discardPort = 9

// Resolve has the kernel ask for a neighbor on a link of a namespace, and says
// whether somebody answered.
func Resolve(ctx context.Context, h kernel.Host, netns, link string, a netip.Addr) (kernel.Resolution, error) {
	err := h.Run(ctx, netns, func() error {
		d := net.Dialer{Control: bindTo(link)}
		c, err := d.DialContext(ctx, "udp", netip.AddrPortFrom(a, discardPort).String())
		if err != nil {
			return err
		}
		_, err = c.Write([]byte{0})
		return errors.Join(err, c.Close())
	})
	if err != nil {
		return kernel.Unasked, fmt.Errorf("ask for %s on %s: %w", a, link, err)
	}
	ctx, cancel := context.WithTimeout(ctx, resolvePatience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		r, err := kernel.EthernetNeighbor(context.WithoutCancel(ctx), h, netns, link, a)
		if err != nil || r == kernel.Resolved {
			return r, err
		}
		select {
		case <-ctx.Done():
			return r, nil
		case <-tick.C:
		}
	}
}
