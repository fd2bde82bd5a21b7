package timerslack

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// tell is the argument with which this program says what came of its slack.
const tell = "tell"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == tell {
		report()
		return
	}
	os.Exit(m.Run())
}

// report prints the slack of several threads, which end with it.
func report() {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			runtime.LockOSThread()
			time.Sleep(10 * time.Millisecond)
			ns, err := prctl(prGetTimerSlack, 0)
			fmt.Println(time.Duration(ns), err)
		})
	}
	wg.Wait()
	fmt.Println("process", os.Getpid(), "mark", os.Getenv(restarted) != "", "err", Err())
}

// TestRaised: the program is started anew once, as the same process, and all its
// threads have the slack.
func TestRaised(t *testing.T) {
	for _, c := range []struct {
		name  string
		slack time.Duration // of who starts it
		env   []string
		want  time.Duration
	}{
		{"usual", 50 * time.Microsecond, nil, Slack},
		{"a kernel that forgets it over execve", 50 * time.Microsecond, []string{restarted + "=1"}, 50 * time.Microsecond},
		{"large enough, and left", 3 * time.Millisecond, nil, 3 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			runtime.LockOSThread() // and so ends with this test: its slack is its own
			if _, err := prctl(prSetTimerSlack, uintptr(c.slack)); err != nil {
				t.Fatal(err)
			}
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), self, tell)
			cmd.Env = append(os.Environ(), c.env...)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			want := strings.Repeat(c.want.String()+" <nil>\n", 4) + fmt.Sprintf("process %d mark false err <nil>\n", cmd.Process.Pid)
			if string(out) != want {
				t.Errorf("it printed\n%swant\n%s", out, want)
			}
		})
	}
}
