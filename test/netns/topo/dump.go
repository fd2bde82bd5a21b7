package topo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespaceDirectory is where ip(8) and the product keep names of namespaces.
const namespaceDirectory = "/run/netns"

// Dump describes for a reader everything that the machine's namespaces hold.
func (m *Machine) Dump(ctx context.Context) (string, error) {
	return m.describe(ctx, func(what, output string) string { return "# " + what + "\n" + output + "\n" })
}

// Fingerprint describes all that the machine's namespaces hold and that a
// restart, or making the same again, would not change: no indexes, counters,
// timers, nor the empty chains that iptables leaves behind. Two of the same
// state are equal. IPv6 is left out, but for packet filters.
func (m *Machine) Fingerprint(ctx context.Context) (string, error) {
	return m.describe(ctx, func(what, output string) string {
		lines := lasting(what, output)
		slices.Sort(lines)
		return strings.Join(lines, "")
	})
}

// describe runs every command in every namespace and puts together what show
// makes of the output.
func (m *Machine) describe(ctx context.Context, show func(what, output string) string) (string, error) {
	var names []string
	err := m.Do(func() error {
		entries, err := os.ReadDir(namespaceDirectory)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("%s: namespaces: %w", m.Name, err)
	}
	var all strings.Builder
	for _, name := range append([]string{""}, names...) {
		text, err := m.describeNamespace(ctx, name, show)
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return all.String(), fmt.Errorf("%s: describe namespace %q: %w", m.Name, name, err)
		}
		if name != "" {
			fmt.Fprintf(&all, "namespace %s\n", name)
		}
		for line := range strings.Lines(text) {
			if name != "" {
				line = name + ": " + line
			}
			all.WriteString(line)
		}
	}
	return all.String(), nil
}

// inspections are the commands that show a namespace, few because each costs a
// fork: ip and tc take a batch.
var inspections = []struct {
	what, input string
	command     []string
}{
	{"ip", "link show\naddress show\nneigh show nud permanent\nroute show table all\nrule show\n", []string{"ip", "-4", "-o", "-d", "-b", "-"}},
	{"iptables", "", []string{"iptables-save"}},
	{"iptables-legacy", "", []string{"iptables-legacy-save"}},
	{"nft", "", []string{"nft", "-s", "list", "ruleset"}},
	{"tc", "", []string{"tc", "-b", "-"}},
}

func (m *Machine) describeNamespace(ctx context.Context, name string, show func(what, output string) string) (string, error) {
	leave, err := m.namespaceThread(name)
	if err != nil {
		return "", err
	}
	defer leave.end()
	var text strings.Builder
	var links string
	for _, i := range inspections {
		input := i.input
		if i.what == "tc" {
			for _, link := range linkName.FindAllStringSubmatch(links, -1) {
				input += "filter show dev " + link[1] + " egress\n"
			}
		}
		output, err := leave.run(ctx, input, i.command)
		if err != nil {
			return "", err
		}
		if i.what == "ip" {
			links = output
		}
		text.WriteString(show(i.what, output))
	}
	forward, err := leave.forwarding()
	if err != nil {
		return "", err
	}
	text.WriteString("net.ipv4.ip_forward=" + forward)
	return text.String(), nil
}

// linkName finds the devices in the one-line output of ip link.
var linkName = regexp.MustCompile(`(?m)^\d+: ([^:@\s]+)[@:].*\bmtu\b`)

// lasting picks the lines that say something lasting, in a form that does not
// depend on the order of making.
func lasting(what, output string) []string {
	var lines []string
	var block string // a table in which the lines are
	for line := range strings.Lines(output) {
		line = unstable.ReplaceAllString(strings.TrimRight(line, "\n"), "")
		switch what {
		case "iptables", "iptables-legacy":
			if strings.HasPrefix(line, "*") {
				block = line
			}
			if line == "" || strings.ContainsAny(line[:1], "*#C") || emptyChain.MatchString(line) {
				continue
			}
		case "nft":
			if strings.HasPrefix(line, "table ") {
				block = line
			}
			if xtables.MatchString(block) {
				continue // shown as iptables
			}
		}
		lines = append(lines, what+" "+block+" "+strings.TrimSpace(line)+"\n")
	}
	return lines
}

var (
	// Indexes, peers by index, queues, lifetimes, counters.
	unstable = regexp.MustCompile(`^\d+: |@[^:\s]+| link-netns(id)? \S+| numtxqueues.*| qlen \d+| qdisc \S+| valid_lft.*|\[\d+:\d+\]| group default.*?promiscuity 0`)
	// A built-in chain is there or not, as iptables pleases.
	emptyChain = regexp.MustCompile(`^:[A-Z]+ ACCEPT`)
	xtables    = regexp.MustCompile(`^table ip6? (filter|nat|mangle|raw|security) `)
)

// namespaceThread is a thread in one of the machine's named namespaces.
type namespaceThread struct {
	machine string
	work    chan func()
	ended   chan struct{}
}

// namespaceThread enters a namespace by its name, or the machine's own.
func (m *Machine) namespaceThread(name string) (*namespaceThread, error) {
	file := m.netns
	if name != "" {
		err := m.Do(func() (err error) {
			file, err = os.Open(filepath.Join(namespaceDirectory, name))
			return err
		})
		if err != nil {
			return nil, err
		}
		defer file.Close()
	}
	t := &namespaceThread{machine: m.Name, work: make(chan func()), ended: make(chan struct{})}
	entered := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		defer close(t.ended)
		err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
		entered <- err
		if err != nil {
			return
		}
		for work := range t.work {
			work()
		}
	}()
	if err := <-entered; err != nil {
		return nil, fmt.Errorf("enter namespace %q: %w", name, err)
	}
	return t, nil
}

func (t *namespaceThread) end() {
	close(t.work)
	<-t.ended
}

// run runs a command in the namespace; what it complains about does not
// matter, as iptables-save does when a table is not its own.
func (t *namespaceThread) run(ctx context.Context, input string, command []string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error, 1)
	t.work <- func() { started <- cmd.Start() }
	err := <-started
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(command, " "), errors.Join(err, context.Cause(ctx)), stderr.String())
	}
	return stdout.String(), nil
}

func (t *namespaceThread) forwarding() (string, error) {
	var content []byte
	done := make(chan error, 1)
	t.work <- func() {
		var err error
		content, err = os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		done <- err
	}
	return string(content), <-done
}
