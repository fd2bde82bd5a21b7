package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// source is a kind of notification socket.
type source struct {
	protocol int
	groups   []int
	hints    func(m syscall.NetlinkMessage) []Hint
	optional bool // a kernel without it has nothing to report either
}

// sources are what every watch listens to (include/uapi/linux/rtnetlink.h,
// include/uapi/linux/netfilter/nfnetlink.h). iptables-legacy reports nothing.
var sources = []source{
	{
		protocol: unix.NETLINK_ROUTE,
		groups: []int{
			unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_TC,
			unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
			unix.RTNLGRP_NEXTHOP,
			unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
			unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
		},
		hints: routeHints,
	},
	{
		protocol: unix.NETLINK_NETFILTER,
		groups:   []int{unix.NFNLGRP_NFTABLES},
		hints:    func(syscall.NetlinkMessage) []Hint { return []Hint{HintFirewall} },
		optional: true,
	},
}

// watcher is one call of Watch.
type watcher struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when it holds nothing of the namespace any more
}

func (h *host) Watch(ctx context.Context, name string) (<-chan Hint, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	handle, err := h.in(name)
	if err != nil {
		return nil, err
	}
	conns := make([]*conn, len(sources))
	for i, source := range sources {
		if conns[i], err = handle.subscribe(source); err != nil {
			for _, c := range conns[:i] {
				err = errors.Join(err, c.Close())
			}
			return nil, fmt.Errorf("watch network namespace %q: %w", name, classify(err))
		}
	}
	ctx, cancel, release := h.register(ctx, name)
	in := make(chan Hint)
	var readers sync.WaitGroup
	readers.Go(func() { send(ctx, in, HintAll) })
	for i, source := range sources {
		if source.protocol == unix.NETLINK_NETFILTER {
			source.hints = h.foreign(source.hints)
		}
		if conns[i] != nil {
			readers.Go(func() {
				defer cancel() // half a watch is none
				handle.follow(ctx, source, conns[i], in)
			})
		}
	}
	readers.Go(func() { handle.parameters.follow(ctx, in) })
	if name == "" {
		if names := newNameWatch(h.dir); names != nil {
			readers.Go(func() { names.follow(ctx, in) })
		}
	}
	go func() {
		readers.Wait()
		release()
	}()
	return MergeHints(ctx, in), nil
}

// register makes a context that ends with the namespace. It needs h.mu. Whoever
// registered must call release, without h.mu, when nothing of the namespace is
// held any more.
func (h *host) register(ctx context.Context, name string) (_ context.Context, cancel, release func()) {
	ctx, cancel = context.WithCancel(ctx)
	w := &watcher{cancel: cancel, done: make(chan struct{})}
	if h.watchers[name] == nil {
		h.watchers[name] = map[*watcher]struct{}{}
	}
	h.watchers[name][w] = struct{}{}
	return ctx, cancel, func() {
		close(w.done)
		cancel()
		h.mu.Lock()
		defer h.mu.Unlock()
		if delete(h.watchers[name], w); len(h.watchers[name]) == 0 {
			delete(h.watchers, name)
		}
	}
}

// foreign leaves out notifications of what sockets of ours have done.
func (h *host) foreign(hints func(syscall.NetlinkMessage) []Hint) func(syscall.NetlinkMessage) []Hint {
	if h.ownFirewall == nil {
		return hints
	}
	return func(m syscall.NetlinkMessage) []Hint {
		if h.ownFirewall(m.Header.Pid) {
			return nil
		}
		return hints(m)
	}
}

// endWatchers ends the watches of a namespace. It needs h.mu.
func (h *host) endWatchers(name string) {
	for w := range h.watchers[name] {
		w.cancel()
		<-w.done
	}
}

// subscribe returns nil for an optional source that the kernel lacks.
func (h *handle) subscribe(s source) (*conn, error) {
	var c *conn
	err := h.visit(func() (err error) {
		c, err = openConn(s.protocol, s.groups...)
		return err
	})
	if err == nil && h.host.quiet && s.protocol == unix.NETLINK_ROUTE {
		if err = h.silence(c); err != nil {
			err = errors.Join(err, c.Close())
		}
	}
	if s.optional && errors.Is(classify(err), ErrNotSupported) {
		return nil, nil
	}
	return c, err
}

// silence has a socket hear nothing of what the handle's own requests do to
// routes and the like: whoever asked knows.
func (h *handle) silence(c *conn) error {
	own, err := h.conn.port()
	if err != nil {
		return err
	}
	program := ownRequests(own)
	var failed error
	err = c.raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
	if err := cmp.Or(err, failed); err != nil {
		return fmt.Errorf("filter a netlink socket: %w", err)
	}
	return nil
}

// ownRequests is a filter (classic BPF) that drops notifications of some types that
// were caused by the socket with the given port. Each is a message of its own.
// BPF reads big-endian, a netlink header is in the machine's order.
func ownRequests(port uint32) []unix.SockFilter {
	const typeAt, portAt = 4, 12 // struct nlmsghdr
	types := []uint16{
		unix.RTM_NEWROUTE, unix.RTM_DELROUTE, unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH,
		unix.RTM_NEWRULE, unix.RTM_DELRULE, unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP,
	}
	swapped := func(b []byte) (v uint32) {
		for _, octet := range b {
			v = v<<8 | uint32(octet)
		}
		return v
	}
	n := uint8(len(types)) //nolint:gosec // a handful
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: portAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: swapped(native.AppendUint32(nil, port)), Jf: n + 1},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: typeAt},
	}
	for i, typ := range types {
		program = append(program, unix.SockFilter{
			Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: swapped(native.AppendUint16(nil, typ)), Jt: n - uint8(i), //nolint:gosec // likewise
		})
	}
	return append(program,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: ^uint32(0)},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K})
}

// follow turns notifications into hints until the context ends or the socket
// fails. An overrun loses notifications until the socket is drained, not just
// the ones before the error (netlink_overrun in net/netlink/af_netlink.c), so
// it is replaced by a new one before "everything may have changed" is said.
func (h *handle) follow(ctx context.Context, s source, c *conn, in chan<- Hint) {
	for {
		stop := context.AfterFunc(ctx, func() { _ = c.Close() })
		err := c.notifications(ctx, func(m syscall.NetlinkMessage) []Hint {
			if port := h.answerPort.Load(); port != 0 && m.Header.Pid == port {
				return nil // AnswerNeighbors
			}
			return s.hints(m)
		}, in)
		if !stop() {
			return // closed already
		}
		_ = c.Close()
		if !errors.Is(err, unix.ENOBUFS) {
			return
		}
		h.host.overrun()
		if c, err = h.subscribe(s); err != nil || c == nil {
			return
		}
		send(ctx, in, HintAll)
	}
}

func (c *conn) notifications(ctx context.Context, hints func(syscall.NetlinkMessage) []Hint, in chan<- Hint) error {
	for {
		msgs, err := c.receive()
		if err != nil {
			return err
		}
		for _, m := range msgs {
			for _, hint := range hints(m) {
				send(ctx, in, hint)
			}
		}
	}
}

func send(ctx context.Context, in chan<- Hint, hint Hint) {
	select {
	case in <- hint:
	case <-ctx.Done():
	}
}

// routeHints reads of a notification only what it takes to leave out the frequent
// ones that cannot concern us.
func routeHints(m syscall.NetlinkMessage) []Hint {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		up := len(m.Data) >= unix.SizeofIfInfomsg && native.Uint32(m.Data[8:])&unix.IFF_UP != 0
		if m.Header.Type == unix.RTM_NEWLINK && up {
			return []Hint{HintLinks}
		}
		// A link that goes takes others along, IPv4 routes without a
		// notification of their own (fib_table_flush in net/ipv4/fib_trie.c).
		return []Hint{HintLinks, HintEgress, HintAddresses, HintNeighbors, HintRoutes}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return []Hint{HintAddresses}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if otherNeighbor(m.Data) || m.Header.Pid == 0 && unresolved(m.Data) {
			return nil
		}
		return []Hint{HintNeighbors}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if ownRoute(m.Data) {
			return nil
		}
		return []Hint{HintRoutes}
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		return []Hint{HintNexthops, HintRoutes} // routes go with a nexthop, unannounced
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return []Hint{HintRules}
	case unix.RTM_NEWNETCONF, unix.RTM_DELNETCONF:
		return []Hint{HintSysctls}
	case unix.RTM_NEWTFILTER, unix.RTM_DELTFILTER, unix.RTM_DELQDISC:
		return []Hint{HintEgress}
	}
	return nil
}

// otherNeighbor tells entries with link-layer addresses of another length: Ethernet
// neighbors come and go all the time.
func otherNeighbor(body []byte) bool {
	other := false
	err := walk(body, unix.SizeofNdMsg, func(typ uint16, v []byte) error {
		other = other || typ == unix.NDA_LLADDR && len(v) != 4
		return nil
	})
	return err == nil && other
}

// unresolved tells entries that the kernel has no answer for, or needs none: those
// of multicast come and go on every tunnel device. When it makes and
// forgets them by itself (port 0) no entry of ours is concerned: a permanent one
// becomes one of these by somebody's request only, which carries a port.
func unresolved(body []byte) bool {
	return len(body) >= unix.SizeofNdMsg && native.Uint16(body[8:])&(unix.NUD_INCOMPLETE|unix.NUD_FAILED|unix.NUD_NOARP) != 0
}

// ownRoute tells routes that the kernel makes for addresses, and cached ones.
func ownRoute(body []byte) bool {
	if len(body) < unix.SizeofRtMsg {
		return false
	}
	switch body[7] {
	case unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST:
		return true
	}
	return native.Uint32(body[8:])&unix.RTM_F_CLONED != 0
}
