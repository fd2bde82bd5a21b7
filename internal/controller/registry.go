package controller

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

// errReplaced ends the stream of an agent that has opened another.
var errReplaced = errors.New("the node's agent has opened another stream")

// registry is what is known of the nodes' agents. It lives in memory only:
// agents connect and report again.
type registry struct {
	mu     sync.Mutex
	agents map[string]*agent
	// changed is closed, and replaced, at every change that matters to those
	// who wait for progress.
	changed chan struct{}
}

type agent struct {
	stream   *stream // nil while it is not connected
	lastSeen time.Time
	report   *apiv1.NodeReport // nil until the first; never changed in place
}

// stream is one agent's connection.
type stream struct {
	cancel context.CancelCauseFunc
	yields chan string // groups whose role is to be handed over; buffered
	asks   chan *apiv1.Question
}

// maxYields is how many hand-overs, and how many questions, wait for a stream to
// send them.
const maxYields = 16

func newRegistry() *registry {
	return &registry{agents: map[string]*agent{}, changed: make(chan struct{})}
}

// notify must be called with the lock held.
func (r *registry) notify() {
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *registry) get(node string) *agent {
	a := r.agents[node]
	if a == nil {
		a = &agent{}
		r.agents[node] = a
	}
	return a
}

// enter notes that a node's agent has opened a stream; a former one is ended.
func (r *registry) enter(node string, now time.Time, cancel context.CancelCauseFunc) *stream {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.get(node)
	if a.stream != nil {
		a.stream.cancel(errReplaced)
	}
	s := &stream{cancel, make(chan string, maxYields), make(chan *apiv1.Question, maxYields)}
	a.stream, a.lastSeen = s, now
	r.notify()
	return s
}

// leave notes that a stream has ended.
func (r *registry) leave(node string, s *stream, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.agents[node]; a != nil && a.stream == s {
		a.stream, a.lastSeen = nil, now
		r.notify()
	}
}

// yield has a node's agent told to hand over a group's active role, and tells
// whether that is on its way.
func (r *registry) yield(node, group string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.agents[node]
	if a == nil || a.stream == nil {
		return false
	}
	select {
	case a.stream.yields <- group:
		return true
	default:
		return false
	}
}

// ask has a question sent to a node's agent, and tells whether it is on its way.
func (r *registry) ask(node string, q *apiv1.Question) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.agents[node]
	if a == nil || a.stream == nil {
		return false
	}
	select {
	case a.stream.asks <- q:
		return true
	default:
		return false
	}
}

// forget drops a node.
func (r *registry) forget(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.agents[node]; a != nil && a.stream == nil {
		delete(r.agents, node)
		r.notify()
	}
}

// put stores what an agent has reported.
func (r *registry) put(node string, report *apiv1.NodeReport, now time.Time) {
	report = proto.CloneOf(report)
	report.Node, report.Connected, report.LastSeen = node, false, nil // ours to say
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.get(node)
	a.lastSeen = now
	if proto.Equal(a.report, report) {
		return
	}
	a.report = report
	r.notify()
}

// connected tells whether a node's agent has a stream open.
func (r *registry) connected(node string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.agents[node]
	return a != nil && a.stream != nil
}

// interfaces returns what a connected node has last reported to have.
func (r *registry) interfaces(node string) (list []*apiv1.Interface, connected bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.agents[node]
	if a == nil || a.stream == nil {
		return nil, false
	}
	return slices.Clone(a.report.GetInterfaces()), true
}

// snapshot is a registry at one moment.
type snapshot struct {
	reports map[string]*apiv1.NodeReport // of every node ever seen
	changed <-chan struct{}              // closed when it is outdated
}

func (r *registry) snapshot() snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := snapshot{reports: make(map[string]*apiv1.NodeReport, len(r.agents)), changed: r.changed}
	for node, a := range r.agents {
		report := &apiv1.NodeReport{}
		if a.report != nil {
			report = proto.CloneOf(a.report)
		}
		report.Node, report.Connected, report.LastSeen = node, a.stream != nil, timestamppb.New(a.lastSeen)
		s.reports[node] = report
	}
	return s
}
