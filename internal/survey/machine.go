package survey

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/diagnose"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// neighbors reads the table of neighbors, which only the initial network namespace
// shows.
func (l *look) neighbors() error {
	own, err := l.opts.Host.In("")
	if err != nil {
		return err
	}
	limit, err := own.Sysctl(l.ctx, "net/ipv4/neigh/default/gc_thresh3")
	if errors.Is(err, kernel.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	n := &l.e.Neighbors
	if n.Limit, err = strconv.Atoi(limit); err != nil {
		return err
	}
	stat, err := processorStat("/proc/net/stat/arp_cache", "entries", "table_fulls")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	n.Entries, n.Full = int(stat["entries"].one), stat["table_fulls"].sum
	// Permanent entries do not count toward the limit, and the statistics do
	// not tell them apart.
	for netns := range l.spaces() {
		h, err := l.opts.Host.In(netns)
		if err != nil {
			continue // gone meanwhile
		}
		all, err := h.Neighbors(l.ctx)
		if err != nil {
			return err
		}
		for _, e := range all {
			if e.State == kernel.NeighborPermanent {
				n.Entries--
			}
		}
	}
	n.Entries = max(n.Entries, 0)
	return nil
}

// stat is a column of a file with a line a processor.
type stat struct {
	one uint64 // of the first, where all show the same
	sum uint64
}

// processorStat reads columns of a file below /proc/net/stat: a line of names, and a
// line of hexadecimal numbers for each processor.
func processorStat(path string, columns ...string) (map[string]stat, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	out := map[string]stat{}
	var names []string
	for s := bufio.NewScanner(bytes.NewReader(content)); s.Scan(); {
		words := strings.Fields(s.Text())
		if names == nil {
			names = words
			continue
		}
		for i, w := range words {
			if i >= len(names) {
				break
			}
			for _, c := range columns {
				if v, err := strconv.ParseUint(w, 16, 64); err == nil && names[i] == c {
					st, seen := out[c]
					if !seen {
						st.one = v
					}
					st.sum += v
					out[c] = st
				}
			}
		}
	}
	return out, nil
}

// rooms looks at forwarding, connections and ports.
func (l *look) rooms() error {
	sample := l.opts.Meter.Take(l.ctx)
	var errs []error
	spaces := l.spaces()
	for _, netns := range sortedKeys(spaces) {
		h, err := l.opts.Host.In(netns)
		if err != nil {
			continue // its absence is a difference
		}
		r := diagnose.Room{Netns: netns, Attachment: spaces[netns]}
		forward, err := h.Sysctl(l.ctx, "net/ipv4/ip_forward")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		r.Forwarding = forward == "1"
		for name, at := range map[string]*int{"nf_conntrack_count": &r.Connections, "nf_conntrack_max": &r.Limit} {
			if v, err := h.Sysctl(l.ctx, "net/netfilter/"+name); err == nil {
				*at, _ = strconv.Atoi(v) // 0: not known
			}
		}
		if err := l.failures(netns, &r); err != nil {
			errs = append(errs, err)
		}
		for _, ns := range sample.Namespaces {
			if ns.Netns != netns {
				continue
			}
			for _, d := range ns.Busiest {
				r.Busiest = append(r.Busiest, diagnose.Ports{Source: d.Source, Destination: d.Addr.String(), Used: d.Ports})
			}
		}
		l.e.Rooms = append(l.e.Rooms, r)
	}
	return errors.Join(errs...)
}

// failures reads what connection tracking has refused.
func (l *look) failures(netns string, r *diagnose.Room) error {
	return l.opts.Host.Run(l.ctx, netns, func() error {
		s, err := processorStat("/proc/thread-self/net/stat/nf_conntrack", "drop", "insert_failed")
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		r.Dropped, r.InsertFailed = s["drop"].sum, s["insert_failed"].sum
		return err
	})
}

// machine looks at the clock, the disk and the other variant of iptables.
func (l *look) machine() error {
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return err
	}
	l.e.Clock.Synchronized = t.Status&unix.STA_UNSYNC == 0
	if l.opts.IPTables != "legacy" {
		names, err := os.ReadFile("/proc/net/ip_tables_names")
		l.e.LegacyToo = err == nil && len(bytes.TrimSpace(names)) > 0
	}
	var f unix.Statfs_t
	if err := unix.Statfs(l.opts.StateDirectory, &f); err != nil {
		return err
	}
	l.e.Disk = diagnose.Disk{Path: l.opts.StateDirectory, Free: f.Bavail * uint64(f.Bsize), Inodes: f.Ffree, ReadOnly: f.Flags&unix.ST_RDONLY != 0}
	if f.Files == 0 { // the file system does not count them
		l.e.Disk.Inodes = 1 << 20
	}
	return nil
}

// networkd and networkManager say what a network manager does unless it is told not
// to, and how it is told.
var knownManagers = []struct {
	name, comm string
	configs    []string // files, and directories of *.conf
	needs      []string // each must be in one of them
	meddles    string
}{
	{"systemd-networkd", "systemd-network", // the kernel cuts names at 15 characters
		[]string{"etc/systemd/networkd.conf", "etc/systemd/networkd.conf.d", "run/systemd/networkd.conf.d", "usr/lib/systemd/networkd.conf.d"},
		[]string{"ManageForeignRoutingPolicyRules=no", "ManageForeignRoutes=no"}, "removes rules and routes that it has not made"},
	{"NetworkManager", "NetworkManager",
		[]string{"etc/NetworkManager/NetworkManager.conf", "etc/NetworkManager/conf.d", "run/NetworkManager/conf.d", "usr/lib/NetworkManager/conf.d"},
		[]string{"interface-name:vpx-"}, "takes hold of the devices vpx-*"},
}

func managers(root string) []diagnose.Manager {
	running := map[string]bool{}
	comms, _ := filepath.Glob(filepath.Join(root, "proc/[0-9]*/comm"))
	for _, path := range comms {
		if name, err := os.ReadFile(path); err == nil {
			running[strings.TrimSpace(string(name))] = true
		}
	}
	var out []diagnose.Manager
	for _, k := range knownManagers {
		m := diagnose.Manager{Name: k.name, Running: running[k.comm]}
		said := configured(root, k.configs)
		for _, need := range k.needs {
			if !strings.Contains(said, need) {
				m.Meddles = k.meddles
			}
		}
		out = append(out, m)
	}
	return out
}

// configured joins the lines of configuration files that are no comments, without
// spaces.
func configured(root string, paths []string) string {
	var files []string
	for _, p := range paths {
		p = filepath.Join(root, p)
		more, _ := filepath.Glob(filepath.Join(p, "*.conf"))
		files = append(append(files, p), more...)
	}
	var b strings.Builder
	for _, f := range files {
		content, err := os.ReadFile(f)
		if err != nil {
			continue // absent, or a directory
		}
		for line := range strings.Lines(string(content)) {
			if line = strings.ReplaceAll(strings.TrimSpace(line), " ", ""); line != "" && line[0] != '#' && line[0] != ';' {
				b.WriteString(line + "\n")
			}
		}
	}
	return b.String()
}

// Traffic is what passes, for vpcproxyctl top.
func (s *Surveyor) Traffic(ctx context.Context) diagnose.Traffic {
	return traffic(s.opts.Name, s.opts.Meter.Take(ctx))
}
