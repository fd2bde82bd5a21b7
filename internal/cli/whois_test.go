package cli

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

func TestMoment(t *testing.T) {
	now := time.Date(2026, 11, 21, 3, 30, 0, 0, time.UTC)
	a := &app{Deps: Deps{Now: func() time.Time { return now }}}
	for in, want := range map[string]time.Time{
		"2026-11-21T03:12:00Z": now.Add(-18 * time.Minute), "15m": now.Add(-15 * time.Minute), "-15m": now.Add(-15 * time.Minute),
	} {
		if got, err := a.moment(in); err != nil || !got.Equal(want) {
			t.Errorf("%s: got %v, %v", in, got, err)
		}
	}
	if _, err := a.moment("yesterday"); err == nil {
		t.Error("yesterday was understood")
	}
}

func TestWhoisText(t *testing.T) {
	start := time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)
	got := string(whoisText(whoisOf(&apiv1.WhoisResponse{Node: "proxy1", Connections: []*apiv1.TranslatedConnection{
		{Attachment: "red", Protocol: "tcp", Source: "100.64.0.80:1111", To: "172.16.101.5:80", Translated: "172.16.101.10:40000",
			Started: timestamppb.New(start), Ended: timestamppb.New(start.Add(time.Minute)), OutBytes: 10, InBytes: 20},
		{Attachment: "red", Protocol: "udp", Source: "100.64.0.80:1112", To: "172.16.101.5:53", Translated: "172.16.101.10:40001"},
	}})))
	want := "tcp 100.64.0.80:1111 to 172.16.101.5:80 as 172.16.101.10:40000, attachment red, from 2026-11-21T03:00:00Z to 2026-11-21T03:01:00Z, 10 bytes out, 20 in\n" +
		"udp 100.64.0.80:1112 to 172.16.101.5:53 as 172.16.101.10:40001, attachment red\n"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
