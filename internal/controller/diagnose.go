package controller

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

const (
	// answerTime bounds the wait for a node's answer: listing a large node's
	// connections takes seconds.
	answerTime = 2 * time.Minute
	// maxQuestions bounds how many wait for their answers.
	maxQuestions = 256
)

// questions are those that nodes have not answered yet.
type questions struct {
	mu      sync.Mutex
	waiting map[uint64]question
}

type question struct {
	node   string
	answer chan *apiv1.AnswerRequest // buffered, 1
}

// ask notes a question; done must be called in the end.
func (q *questions) ask(node string) (id uint64, answer <-chan *apiv1.AnswerRequest, done func(), err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) >= maxQuestions {
		return 0, nil, nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d questions to nodes wait for their answers; try again later", maxQuestions))
	}
	if q.waiting == nil {
		q.waiting = map[uint64]question{}
	}
	for id = rand.Uint64(); id == 0 || q.waiting[id].answer != nil; id = rand.Uint64() {
	}
	ch := make(chan *apiv1.AnswerRequest, 1)
	q.waiting[id] = question{node, ch}
	return id, ch, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.waiting, id)
	}, nil
}

// take hands an answer to who waits for it, and tells whether somebody did.
func (q *questions) take(a *apiv1.AnswerRequest) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	w, ok := q.waiting[a.GetId()]
	if !ok || w.node != a.GetNode() {
		return false
	}
	delete(q.waiting, a.GetId())
	w.answer <- a
	return true
}

// DiagnoseNode implements ControlServiceHandler.
func (s *control) DiagnoseNode(ctx context.Context, req *connect.Request[apiv1.DiagnoseNodeRequest]) (*connect.Response[apiv1.DiagnoseResponse], error) {
	node := req.Msg.GetNode()
	v, err := s.c.current()
	if err != nil {
		return nil, answer(err)
	}
	if v.revisionOf(intent.KindNode, node) == 0 {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("there is no node %q; see `vpcproxyctl get nodes`", node))
	}
	id, answered, done, err := s.c.questions.ask(node)
	if err != nil {
		return nil, err
	}
	defer done()
	if !s.c.agents.ask(node, &apiv1.Question{Id: id, Request: req.Msg.GetRequest()}) {
		return nil, connect.NewError(connect.CodeUnavailable, fmt.Errorf("the agent of node %q is not connected", node))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answerTime, fmt.Errorf("the agent of node %q has not answered within %v", node, answerTime))
	defer cancel()
	select {
	case <-ctx.Done():
		return nil, connect.NewError(connect.CodeDeadlineExceeded, context.Cause(ctx))
	case a := <-answered:
		if a.GetError() != "" {
			return nil, connect.NewError(connect.CodeUnavailable, fmt.Errorf("node %q: %w", node, errors.New(a.GetError())))
		}
		return connect.NewResponse(&apiv1.DiagnoseResponse{Report: a.GetReport()}), nil
	}
}

// Answer implements AgentServiceHandler.
func (s *agentAPI) Answer(ctx context.Context, req *connect.Request[apiv1.AnswerRequest]) (*connect.Response[apiv1.AnswerResponse], error) {
	if err := mayBe(ctx, req.Msg.GetNode()); err != nil {
		return nil, err
	}
	if !s.c.questions.take(req.Msg) {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("nobody waits for this answer"))
	}
	return connect.NewResponse(&apiv1.AnswerResponse{}), nil
}
