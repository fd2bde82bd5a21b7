package ha

import (
	"fmt"
	"net/netip"
	"time"
)

// State is a state of RFC 9568 section 6.3, or Fault.
type State uint8

// The states. In Fault a node is not fit to be active, or drained: it sends
// nothing and claims nothing.
const (
	Initialize State = iota
	Backup
	Active
	Fault
)

var stateNames = [...]string{"Initialize", "Backup", "Active", "Fault"}

// String returns the state's name as the RFC writes it.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Event is something that happened to an instance.
type Event interface{ event() }

// The events.
type (
	// Startup begins the election (6.4.1).
	Startup struct{}
	// Shutdown ends it: an active says so to its peers (6.4.3).
	Shutdown struct{}
	// Tick says that time has passed, and that every advert which had arrived has
	// been told of. Send it when Deadline is reached; sooner or oftener does no
	// harm.
	Tick struct{}
	// Advert is an advertisement that was let through. Timers do not run out
	// with it: a later one may wait behind it.
	Advert struct {
		From      netip.Addr
		Priority  uint8
		Interval  time.Duration
		Addresses []netip.Addr
		// Waited is how long ago it arrived: the silence after it began then.
		Waited time.Duration
	}
	// Report says whether a tracked thing works. An unknown name is ignored.
	Report struct {
		Name string
		Up   bool
	}
	// Yield hands the active role over and stays backup for For; zero is until
	// Resume. It takes the role back sooner if nobody else holds it.
	Yield struct{ For time.Duration }
	// Resume ends the effect of Yield.
	Resume struct{}
	// Drain takes the node out of the election while On.
	Drain struct{ On bool }
	// Behind says whether the node lacks what it needs to go on with the work of
	// the active one, such as a copy of its connections: see Config.CatchUp.
	Behind struct{ On bool }
	// Reconfigure replaces the configuration without a change of role. The new
	// one must be valid and have the old one's VRID and Local.
	Reconfigure struct{ Config Config }
)

func (Startup) event()     {}
func (Shutdown) event()    {}
func (Tick) event()        {}
func (Advert) event()      {}
func (Report) event()      {}
func (Yield) event()       {}
func (Resume) event()      {}
func (Drain) event()       {}
func (Behind) event()      {}
func (Reconfigure) event() {}

// Action is what the machine wants done. Actions are done in order.
type Action interface{ action() }

// The actions.
type (
	// Send sends an advert at once: to all, or, in a unicast group, to To alone
	// if it is valid.
	Send struct {
		Priority uint8
		To       netip.Addr
	}
	// Activate takes the addresses and announces them once they are ready.
	Activate struct{}
	// Announce announces the addresses again (gratuitous ARP, unsolicited
	// neighbor advertisement, a cloud's claim): another node had claimed them.
	Announce struct{}
	// Deactivate silences the addresses and then lets go of them.
	Deactivate struct{}
	// Change reports a change of state.
	Change struct {
		From, To State
		Why      string
	}
	// Note is for the operator; it is already rate-limited.
	Note struct{ Text string }
)

func (Send) action()       {}
func (Activate) action()   {}
func (Announce) action()   {}
func (Deactivate) action() {}
func (Change) action()     {}
func (Note) action()       {}
