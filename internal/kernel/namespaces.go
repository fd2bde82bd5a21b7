package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (h *host) Namespaces(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(h.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list network namespaces: %w", classify(err))
	}
	names := []string{}
	ids := map[string]nsID{}
	for _, entry := range entries {
		path, err := h.path(entry.Name())
		if err != nil {
			return nil, err
		}
		id, err := identify(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted meanwhile, or a name without a namespace
		}
		if err != nil {
			return nil, fmt.Errorf("list network namespaces: %w", classify(err))
		}
		names = append(names, entry.Name())
		ids[entry.Name()] = id
	}
	slices.Sort(names)
	return names, h.release(ids)
}

// release lets go of namespaces whose name someone else has taken away: only
// our descriptors keep them, and their devices' keys, alive.
func (h *host) release(present map[string]nsID) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for name, handle := range h.open {
		if present[name] != handle.id {
			errs = append(errs, h.forget(name))
		}
	}
	return errors.Join(errs...)
}

func (h *host) CreateNamespace(ctx context.Context, name string) error {
	path, err := h.path(name)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := h.in(name); err == nil {
		return nil
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := shareDir(h.dir); err != nil {
		return fmt.Errorf("create network namespace %s: %w", name, classify(err))
	}
	// A file of this name without a namespace is left from a creation that
	// was cut short, and serves.
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return fmt.Errorf("create network namespace %s: %w", name, classify(err))
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("create network namespace %s: %w", name, err)
	}
	if err := onNewThread(func() error { return makeNamespace(path) }); err != nil {
		return fmt.Errorf("create network namespace %s: %w", name, errors.Join(classify(err), os.Remove(path)))
	}
	return nil
}

// makeNamespace gives the calling thread, which must end with this, a new
// network namespace. It gets its name last, so that nobody meets an unfinished one.
func makeNamespace(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	// A new namespace takes over the initial one's settings, depending on
	// net.core.devconf_inherit_init_net (Documentation/admin-guide/sysctl/net.rst):
	// do not forward before someone wants it.
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := writeSysctl(procSys, name, "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount on %s: %w", path, err)
	}
	return nil
}

// shareDir makes dir a mount that other mount namespaces see changes of, as
// iproute2 does (ip/ipnetns.c, netns_add): without that a name removed here
// would live on in a container that copied it.
func shareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) {
		return wrapMount(dir, err)
	}
	// Not a mount point yet.
	if err := unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return wrapMount(dir, err)
	}
	return wrapMount(dir, unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, ""))
}

func wrapMount(path string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: "mount", Path: path, Err: err}
}

func (h *host) DeleteNamespace(ctx context.Context, name string) error {
	path, err := h.path(name)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	handle, err := h.in(name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if err == nil {
		if err := handle.vacate(ctx); err != nil {
			return fmt.Errorf("delete network namespace %s: %w", name, err)
		}
	}
	if err := h.forget(name); err != nil {
		return err
	}
	// EINVAL: a name without a namespace.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete network namespace %s: unmount: %w", name, classify(err))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete network namespace %s: %w", name, classify(err))
	}
	return nil
}

// vacate empties a namespace of the links that must not wait for its end, which
// the kernel brings about later and only when nobody holds it any more: GRE
// devices keep their (local, key) slot in the underlay until they are
// gone, and physical links would go to the initial namespace, which need not be
// the agent's.
func (h *handle) vacate(ctx context.Context) error {
	links, err := h.Links(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, link := range links {
		switch {
		case link.Type == "gre" && !fallback(link):
			errs = append(errs, h.DeleteLink(ctx, link.Index))
		case link.Type == "" && link.Name != "lo":
			errs = append(errs, h.moveLink(ctx, link.Index, int(h.host.own.ns)))
		}
	}
	return errors.Join(errs...)
}
