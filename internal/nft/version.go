package nft

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Version identifies a state of a namespace's nftables: while it is the same, so is
// all that is in them but what counters have counted.
type Version struct {
	cookie     uint64 // of the namespace; never used again
	generation uint32 // counts transactions
}

// VersionHere returns the version of the calling thread's namespace. It takes five
// system calls, where a list takes a dozen for each table. Linux before 5.14 has no
// number for a namespace, and no version.
func VersionHere() (v Version, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return v, fmt.Errorf("nftables version: %w", err)
	}
	defer func() { _ = unix.Close(fd) }() // was only read from
	if v.cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil {
		return v, fmt.Errorf("nftables version: namespace cookie: %w", err)
	}
	if v.generation, err = askGeneration(fd); err != nil {
		return v, fmt.Errorf("nftables version: %w", err)
	}
	return v, nil
}

// askGeneration asks on a fresh socket. The kernel has answered when the call that asks
// returns.
func askGeneration(fd int) (uint32, error) {
	b := transactionBytes{}
	b.append(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0, unix.AF_UNSPEC, 0, nil)
	if err := unix.Sendto(fd, b.bytes, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	answer := make([]byte, 512) // an answer has 52 bytes
	n, _, err := unix.Recvfrom(fd, answer, unix.MSG_DONTWAIT)
	switch {
	case err != nil:
		return 0, err
	case n < nlmsgHeader+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN:
		return 0, fmt.Errorf("%d bytes are no generation: %w", n, unix.EBADMSG)
	}
	var generation uint32
	err = nested(answer[nlmsgHeader+4:n], func(ad *netlink.AttributeDecoder) {
		if ad.Type() == unix.NFTA_GEN_ID {
			generation = ad.Uint32()
		}
	})
	return generation, err
}

// version returns the version of a namespace, and whether it is known.
func (ts *Tables) version(ctx context.Context, netns string) (v Version, known bool) {
	if ts.options.Run == nil {
		return v, false
	}
	err := ts.options.Run(ctx, netns, func() (err error) {
		v, err = VersionHere()
		return err
	})
	return v, err == nil
}

// unused is for how long something is remembered that nobody asks for: its namespace
// has gone, as a rule.
const unused = 10 * time.Minute

// Memory remembers what has been read of namespaces, each with a version V: taken
// before reading, so that what changes meanwhile makes the next one differ. The
// zero value is empty. It is safe for concurrent use.
type Memory[V comparable, T any] struct {
	mu    sync.Mutex
	by    map[string]*remembered[V, T]
	swept time.Time
}

type remembered[V comparable, T any] struct {
	version V
	known   bool
	value   T
	used    time.Time
}

// Get returns what was read of a namespace if that was of this version.
func (m *Memory[V, T]) Get(netns string, v V) (value T, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.by[netns]
	if r == nil || !r.known || r.version != v {
		return value, false
	}
	r.used = time.Now()
	return r.value, true
}

// Last returns what was last read of a namespace, which may have changed since.
func (m *Memory[V, T]) Last(netns string) (value T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.by[netns]; r != nil {
		return r.value
	}
	return value
}

// Put remembers what was read; if its version is not known, for Last alone.
func (m *Memory[V, T]) Put(netns string, v V, known bool, value T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if now.Sub(m.swept) >= unused {
		m.swept = now
		for name, r := range m.by {
			if now.Sub(r.used) >= unused {
				delete(m.by, name)
			}
		}
	}
	if m.by == nil {
		m.by = map[string]*remembered[V, T]{}
	}
	m.by[netns] = &remembered[V, T]{v, known, value, now}
}

// Forget has a namespace read again.
func (m *Memory[V, T]) Forget(netns string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.by, netns)
}
