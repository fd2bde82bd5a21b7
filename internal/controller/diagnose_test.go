package controller

import (
	"testing"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

func (r *rig) diagnose(t *testing.T, node string) (string, error) {
	t.Helper()
	resp, err := r.control.DiagnoseNode(t.Context(), connect.NewRequest(&apiv1.DiagnoseNodeRequest{
		Node: node, Request: &apiv1.DiagnoseRequest{What: &apiv1.DiagnoseRequest_Traffic{Traffic: &apiv1.TrafficRequest{}}},
	}))
	if err != nil {
		return "", err
	}
	return string(resp.Msg.GetReport()), nil
}

func TestDiagnoseNode(t *testing.T) {
	r := start(t)
	r.platform(t)
	_, err := r.diagnose(t, "nope")
	wantCode(t, err, connect.CodeNotFound, `no node "nope"`)
	_, err = r.diagnose(t, "p1")
	wantCode(t, err, connect.CodeUnavailable, `agent of node "p1" is not connected`)
	p1 := r.watch(t, nodeP1)
	p1.next()
	answer := func(a *apiv1.AnswerRequest) error {
		_, err := r.agent.Answer(t.Context(), connect.NewRequest(a))
		return err
	}
	agent := make(chan struct{})
	go func() {
		defer close(agent)
		for asked := 0; asked < 2 && p1.stream.Receive(); {
			q := p1.stream.Msg().GetQuestion()
			if q == nil {
				continue
			}
			if asked++; asked == 2 {
				if err := answer(&apiv1.AnswerRequest{Node: "p1", Id: q.GetId(), Error: "busy"}); err != nil {
					t.Error(err)
				}
				continue
			}
			if q.GetRequest().GetTraffic() == nil {
				t.Errorf("asked for %v", q.GetRequest())
			}
			// Another node's answer is none.
			wantCode(t, answer(&apiv1.AnswerRequest{Node: "p2", Id: q.GetId(), Report: []byte("forged")}), connect.CodeNotFound, "nobody waits")
			if err := answer(&apiv1.AnswerRequest{Node: "p1", Id: q.GetId(), Report: []byte("fine")}); err != nil {
				t.Error(err)
			}
			wantCode(t, answer(&apiv1.AnswerRequest{Node: "p1", Id: q.GetId(), Report: []byte("late")}), connect.CodeNotFound, "nobody waits")
		}
	}()
	if got, err := r.diagnose(t, "p1"); err != nil || got != "fine" {
		t.Errorf("%q, %v", got, err)
	}
	_, err = r.diagnose(t, "p1")
	wantCode(t, err, connect.CodeUnavailable, `node "p1": busy`)
	<-agent
}

func TestQuestionsAreBounded(t *testing.T) {
	var q questions
	var done []func()
	for range maxQuestions {
		_, _, d, err := q.ask("n")
		if err != nil {
			t.Fatal(err)
		}
		done = append(done, d)
	}
	if _, _, _, err := q.ask("n"); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("got %v", err)
	}
	done[0]()
	if _, _, _, err := q.ask("n"); err != nil {
		t.Error(err)
	}
}
