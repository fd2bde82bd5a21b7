package reconcile

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Op is what is done to an object.
type Op uint8

// The operations.
const (
	Create Op = iota + 1 // it is missing
	Repair               // it differs
	Delete               // nobody wants it
)

// String returns "create", "repair" or "delete".
func (o Op) String() string {
	switch o {
	case Create:
		return "create"
	case Repair:
		return "repair"
	case Delete:
		return "delete"
	}
	return fmt.Sprintf("Op(%d)", uint8(o))
}

// Change is one line of a plan. Key, Want and Have hold the Kind's own types;
// Want is nil for a deletion, Have for a creation.
type Change struct {
	Kind       string
	Op         Op
	Key        any
	Want       any
	Have       any
	Reason     string
	Disruptive bool // deleted before something else can be made
}

// Cause says why a pass ran.
type Cause uint8

// The causes. A pass may have several.
const (
	CauseDesired Cause = 1 << iota // a new desired state
	CauseHint                      // something may have changed
	CauseRetry                     // a failed object is due
	CauseRefresh                   // the periodic full look
	CauseResync                    // somebody asked
)

// String joins the causes with "+".
func (c Cause) String() string {
	var names []string
	for i, n := range []string{"desired", "hint", "retry", "refresh", "resync"} {
		if c&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return strings.Join(names, "+")
}

// Pass reports on one pass.
type Pass struct {
	Cause      Cause
	Generation uint64 // of the desired state
	Start      time.Time
	Duration   time.Duration
	Rounds     int        // how often kinds were listed and written
	Kinds      []KindPass // all kinds, in stage order
	Converged  bool       // everything is as wanted
	Err        error      // what is not, capped; nil if Converged
}

// Writes returns how many objects were written.
func (p Pass) Writes() int {
	n := 0
	for _, k := range p.Kinds {
		n += k.Created + k.Repaired + k.Deleted
	}
	return n
}

// KindPass reports on one kind in one pass.
type KindPass struct {
	Name                       string
	Listed                     int   // objects of ours in the kernel; 0 if the kind was not looked at
	ListErr                    error // the kind was not touched because of it
	Created, Repaired, Deleted int
	Failed                     int // attempts
	Drift                      int // differences that someone else made
}

func (k *KindPass) count(op Op) {
	switch op {
	case Create:
		k.Created++
	case Repair:
		k.Repaired++
	case Delete:
		k.Deleted++
	}
}

// Observer hears of every pass, on the loop's goroutine: it must not block.
type Observer interface {
	ObservePass(Pass)
}

// maxObjects caps the objects in a KindStatus.
const maxObjects = 20

// Status is a snapshot taken at the end of the last pass.
type Status struct {
	Generation uint64 // of the desired state set last; 0: none
	Applied    uint64 // of the desired state in the last pass
	Converged  bool   // everything is as Applied wants it
	Waiting    string // why nothing is written yet; "" after the first pass
	LastPass   time.Time
	Duration   time.Duration
	Kinds      []KindStatus // in stage order
}

// KindStatus is the state of one kind.
type KindStatus struct {
	Name     string
	Wanted   int
	Actual   int
	Pending  int // objects that are not as wanted
	ListErr  error
	ListedAt time.Time
	Objects  []ObjectStatus // pending ones, capped at 20, failures first
}

// ObjectStatus says why an object is not as wanted.
type ObjectStatus struct {
	Object   any    // the Kind's own key
	Key      string // the same as text
	Op       Op
	Err      error
	Waiting  bool // not attempted: another kind must go first
	Attempts int  // failed ones in a row
	Since    time.Time
	Next     time.Time // of the next attempt; zero if Waiting
}

// maxErrors caps joined errors: the sixth helps nobody.
const maxErrors = 5

// joinErrors joins at most maxErrors of errs, out of total.
func joinErrors(errs []error, total int) error {
	if len(errs) > maxErrors {
		errs = errs[:maxErrors]
	}
	if rest := total - len(errs); rest > 0 && len(errs) > 0 {
		errs = append(errs[:len(errs):len(errs)], fmt.Errorf("and %d more", rest))
	}
	return errors.Join(errs...)
}
