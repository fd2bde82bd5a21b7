package agent

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// health answers probes: /livez fails if restarting may help, /readyz until all
// tasks are ready.
type health struct {
	tasks func() []Task
	// wedged tells what hangs; "" if nothing does. Nil without a node.
	wedged func() string
}

func (h health) register(mux *http.ServeMux) {
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		if h.wedged != nil {
			answer(w, h.wedged())
			return
		}
		answer(w, "")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		var waiting []string
		for _, t := range h.tasks() {
			select {
			case <-t.Ready():
			default:
				waiting = append(waiting, t.String())
			}
		}
		if len(waiting) > 0 {
			answer(w, "not ready: "+strings.Join(waiting, ", "))
			return
		}
		answer(w, "")
	})
}

// answer sends 200, or 503 with a problem. A probe that has gone needs none.
func answer(w http.ResponseWriter, problem string) {
	text := "ok"
	if problem != "" {
		w.WriteHeader(http.StatusServiceUnavailable)
		text = problem
	}
	_, _ = io.WriteString(w, text+"\n")
}

// passes is how many refreshes may be missed before the reconcile loop counts as
// hanging; a single slow pass, of thousands of objects on a busy machine, must
// not.
const passes = 10

// wedged says whether the reconcile loop hangs. One that has not begun, because
// there is no intent yet, does not.
func (t *nodeTask) wedged() string {
	last := t.node.Status().Loop.LastPass
	limit := passes*t.cfg.Reconcile.Refresh + time.Minute
	if age := time.Since(last); !last.IsZero() && age > limit {
		return fmt.Sprintf("the kernel was last looked at %s ago", age.Round(time.Second))
	}
	return ""
}
