package traffic

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Pauses knows when the whole guest stood still because the machine under it ran
// something else. A process that comes before all others and sleeps for moments finds
// out: what keeps it from waking up keeps everybody.
type Pauses struct {
	process *exec.Cmd
	task    sync.WaitGroup

	mu  sync.Mutex
	all []pause
}

// pause is the time, on the monotonic clock, between two looks that were too far apart.
type pause struct{ from, to time.Duration }

const (
	// nap is how long the process sleeps, and yawn how much later it may wake up
	// in a guest that nothing keeps from running. Two programs that share a
	// processor take turns of a few milliseconds.
	nap, yawn = 3 * time.Millisecond, 500 * time.Microsecond
	// foremost is a priority above everybody else's in the lab.
	foremost = 50
)

// StartPauses runs this program again as the process that looks, with environment
// in which it calls LookForPauses.
func StartPauses(environment ...string) (*Pauses, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &Pauses{process: exec.Command(self)} //nolint:noctx // Stop ends it
	p.process.Env = append(os.Environ(), environment...)
	p.process.Stderr = os.Stderr
	out, err := p.process.StdoutPipe()
	if err == nil {
		err = p.process.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("look for pauses: %w", err)
	}
	in := bufio.NewReader(out)
	if _, err := in.ReadString('\n'); err != nil { // it has begun
		return nil, errors.Join(fmt.Errorf("look for pauses: %w", err), p.process.Wait())
	}
	p.task.Go(func() { p.listen(in) })
	return p, nil
}

func (p *Pauses) listen(in io.Reader) {
	for {
		var found pause
		if _, err := fmt.Fscan(in, &found.from, &found.to); err != nil {
			return
		}
		p.mu.Lock()
		p.all = append(p.all, found)
		p.mu.Unlock()
	}
}

// Lost returns how much of the time between two moments the guest did not have.
func (p *Pauses) Lost(from, to time.Time) (lost time.Duration) {
	now, clock := time.Now(), monotonic()
	begin, end := clock-now.Sub(from), clock-now.Sub(to)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, found := range p.all {
		if shared := min(end, found.to) - max(begin, found.from); shared > 0 {
			lost += shared
		}
	}
	return lost
}

// Stop ends it.
func (p *Pauses) Stop() {
	_ = p.process.Process.Kill()
	p.task.Wait()
	_ = p.process.Wait() // killed
}

func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // it is always there
	return time.Duration(ts.Nano())
}

// LookForPauses writes a line when it has begun, and one for each pause, until it
// is killed.
func LookForPauses(out io.Writer) error {
	runtime.LockOSThread()
	if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: foremost}, 0); err != nil {
		return fmt.Errorf("come before all others: %w", err)
	}
	if _, err := fmt.Fprintln(out, "looking"); err != nil {
		return err
	}
	wait := unix.NsecToTimespec(nap.Nanoseconds())
	for last := monotonic(); ; {
		_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &wait, nil) // a signal wakes it up too early
		at := monotonic()
		if at-last > nap+yawn {
			if _, err := fmt.Fprintln(out, int64(last+nap), int64(at)); err != nil {
				return err
			}
			at = monotonic()
		}
		last = at
	}
}
