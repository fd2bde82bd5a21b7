package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// DefaultNetnsDir is where iproute2 keeps network namespaces by name
// (ip-netns(8)).
const DefaultNetnsDir = "/run/netns"

// HostOptions sets up a Host. The zero value is right for a program.
type HostOptions struct {
	// NetnsDir holds the names of namespaces; "" is DefaultNetnsDir.
	NetnsDir string
	// Own is the path of the namespace that "" means; "" is the calling
	// thread's.
	Own string
	// Overrun, if not nil, is called each time that notifications were lost
	// because nobody took them in time. It must not block.
	Overrun func()
	// Sysctls is where parameters are read and written; "" is /proc/sys, which
	// is read-only in most containers. Any mount of it shows those of the
	// namespace that the opening thread is in (net/sysctl_net.c).
	Sysctls string
	// OwnFirewall, if not nil, tells whether a netlink socket, by its port ID,
	// is one whose changes of nftables are no news.
	OwnFirewall func(portID uint32) bool
	// Quiet leaves out hints of what is done to routes, rules, neighbors and
	// next hops by way of this Host itself. The kernel does not even
	// hand over the notifications, which come by the thousands.
	Quiet bool
}

// host is the Host of this machine's kernel.
type host struct {
	dir         string
	overrun     func()
	sysctls     string
	ownFirewall func(portID uint32) bool // may be nil
	quiet       bool
	written     *parameterWatch // may be nil

	mu       sync.Mutex
	own      *handle
	open     map[string]*handle // by name
	watchers map[string]map[*watcher]struct{}
	closed   bool
}

var (
	_ Host   = (*host)(nil)
	_ Handle = (*handle)(nil)
)

// NewHost opens the namespace that the calling thread is in. The caller must
// Close the Host.
func NewHost(options HostOptions) (Host, error) {
	if options.NetnsDir == "" {
		options.NetnsDir = DefaultNetnsDir
	}
	if options.Own == "" {
		options.Own = "/proc/thread-self/ns/net"
	}
	if options.Overrun == nil {
		options.Overrun = func() {}
	}
	if options.Sysctls == "" {
		options.Sysctls = procSys
	}
	var written *parameterWatch
	if options.Sysctls != procSys || procIsInits() { // any other was chosen because it is the host's
		written = newParameterWatch()
	}
	h := &host{
		sysctls:     options.Sysctls,
		dir:         options.NetnsDir,
		overrun:     options.Overrun,
		open:        map[string]*handle{},
		watchers:    map[string]map[*watcher]struct{}{},
		ownFirewall: options.OwnFirewall,
		quiet:       options.Quiet,
		written:     written,
	}
	own, err := openHandle(h, "", options.Own)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the agent's network namespace: %w", classify(err)), h.written.close())
	}
	h.own = own
	return h, nil
}

func (h *host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	errs := []error{}
	for name := range h.watchers {
		h.endWatchers(name)
	}
	for name := range h.open {
		errs = append(errs, h.forget(name))
	}
	errs = append(errs, h.own.close(), h.written.close())
	return errors.Join(errs...)
}

// path returns where a namespace is mounted. Names are file names.
func (h *host) path(name string) (string, error) {
	if name == "" || name != filepath.Base(name) || name == "." || name == ".." {
		return "", fmt.Errorf("network namespace %q: not a name for %s", name, h.dir)
	}
	return filepath.Join(h.dir, name), nil
}

func (h *host) In(name string) (Handle, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	handle, err := h.in(name)
	if err != nil {
		return nil, err
	}
	return handle, nil
}

// in needs h.mu.
func (h *host) in(name string) (*handle, error) {
	if h.closed {
		return nil, fmt.Errorf("network namespace %q: the host is closed: %w", name, os.ErrClosed)
	}
	if name == "" {
		return h.own, nil
	}
	path, err := h.path(name)
	if err != nil {
		return nil, err
	}
	id, err := identify(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network namespace %s: %w", name, classify(err)), h.forget(name))
	}
	if have, ok := h.open[name]; ok {
		if have.id == id {
			return have, nil
		}
		if err := h.forget(name); err != nil {
			return nil, err
		}
	}
	handle, err := openHandle(h, name, path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", name, classify(err))
	}
	h.open[name] = handle
	return handle, nil
}

// forget closes what is held open in a namespace, so that the namespace can
// end. It needs h.mu.
func (h *host) forget(name string) error {
	h.endWatchers(name)
	have, ok := h.open[name]
	if !ok {
		return nil
	}
	delete(h.open, name)
	if err := have.close(); err != nil {
		return fmt.Errorf("close network namespace %s: %w", name, err)
	}
	return nil
}

func (h *host) Run(ctx context.Context, name string, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ns, err := h.duplicate(name)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(ns) }()
	entered := false
	err = visit(ns, func() error {
		entered = true
		return f()
	})
	if err != nil && !entered {
		return fmt.Errorf("network namespace %q: %w", name, classify(err))
	}
	return err
}

// duplicate returns a descriptor of a namespace that stays valid whatever
// happens to the handle. The caller closes it.
func (h *host) duplicate(name string) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	handle, err := h.in(name)
	if err != nil {
		return -1, err
	}
	ns, err := unix.FcntlInt(uintptr(handle.ns), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("network namespace %q: duplicate its descriptor: %w", name, err)
	}
	return ns, nil
}

// nsID identifies a namespace for as long as something holds it.
type nsID struct{ dev, ino uint64 }

// identify fails with fs.ErrNotExist if there is no namespace at path: the name
// may be there without one, left behind by a creation that did not end.
func identify(path string) (nsID, error) {
	spaces, err := nsfs()
	if err != nil {
		return nsID{}, err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nsID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Dev != spaces {
		return nsID{}, &os.PathError{Op: "open namespace", Path: path, Err: unix.ENOENT}
	}
	return nsID{dev: st.Dev, ino: st.Ino}, nil
}

// nsfs returns the device of the file system of all namespaces, of which there is one
// (fs/nsfs.c).
var nsfs = sync.OnceValues(func() (uint64, error) {
	const path = "/proc/thread-self/ns/net"
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Dev, nil
})

// handle works in one network namespace.
type handle struct {
	host *host
	name string
	id   nsID

	// mu is held for reading while a call is in progress. A library handle
	// that is used after its Close would silently work in the namespace of
	// the calling thread.
	mu     sync.RWMutex
	ns     netns.NsHandle
	nl     *netlink.Handle // links, qdiscs and filters
	conn   *conn           // batches and the other listings
	closed bool

	parameters *parameters
	linkMemo   linkMemo

	extra      sync.Mutex    // over what is opened when it is first needed
	answers    *conn         // AnswerNeighbors
	tracking   *conn         // Flows
	answerPort atomic.Uint32 // of answers; 0 before there is one
}

// openHandle opens the namespace at path.
func openHandle(host *host, name, path string) (*handle, error) {
	id, err := identify(path)
	if err != nil {
		return nil, err
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	h := &handle{host: host, name: name, id: id, ns: ns, parameters: newParameters(host.written)}
	err = h.visit(func() (err error) {
		if h.conn, err = openConn(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		if h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open a netlink socket: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

// visit calls f in the namespace, for a few quick calls.
func (h *handle) visit(f func() error) error {
	return visit(int(h.ns), f)
}

// close waits for calls in progress.
func (h *handle) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	var err error
	for _, c := range []*conn{h.conn, h.answers, h.tracking} {
		if c != nil {
			err = errors.Join(err, c.Close())
		}
	}
	if h.nl != nil {
		h.nl.Close()
	}
	h.parameters.close()
	h.linkMemo.forget()
	return errors.Join(err, h.ns.Close())
}

// lazy opens a further connection when it is first needed; setUp completes it.
func (h *handle) lazy(at **conn, protocol int, setUp func(*conn) error) (*conn, error) {
	h.extra.Lock()
	defer h.extra.Unlock()
	if *at != nil {
		return *at, nil
	}
	var c *conn
	err := h.visit(func() (err error) {
		c, err = openConn(protocol)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := setUp(c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	*at = c
	return c, nil
}

// use calls f unless the handle is closed, and classifies its error.
func (h *handle) use(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return fmt.Errorf("network namespace %q is gone: %w", h.name, ErrNotFound)
	}
	return classify(f())
}

// useBatch is use for a call with one error per item. what names item i.
func (h *handle) useBatch(ctx context.Context, n int, what func(i int) string, f func() []error) []error {
	var errs []error
	err := h.use(ctx, func() error {
		errs = f()
		return nil
	})
	if err != nil {
		errs = make([]error, n)
		for i := range errs {
			errs[i] = err
		}
	}
	for i, err := range errs {
		if err != nil {
			errs[i] = fmt.Errorf("%s: %w", what(i), classify(err))
		}
	}
	return errs
}
