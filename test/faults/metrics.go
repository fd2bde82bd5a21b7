package main

import (
	"context"
	"fmt"
	"net"
	"net/http"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

const metricsAddress = "127.0.0.1:9464"

// scrape reads an agent's metrics as Prometheus does.
func (a *agent) scrape(ctx context.Context) (map[string]*dto.MetricFamily, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return traffic.Dial(ctx, a.Machine, network, address)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metricsAddress+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(response.Body)
}

// inPlace tells whether an agent has everything in the kernel that it wants,
// and its intent from the controller.
func (a *agent) inPlace(ctx context.Context) error {
	metrics, err := a.scrape(ctx)
	if err != nil {
		return err
	}
	for name, want := range map[string]float64{
		"vpcproxy_in_sync": 1, "vpcproxy_intent_connected": 1, "vpcproxy_intent_held": 0, "vpcproxy_attachments_not_ready": 0,
	} {
		samples := metrics[name].GetMetric()
		if len(samples) != 1 {
			return fmt.Errorf("%s has %d samples", name, len(samples))
		}
		if got := samples[0].GetGauge().GetValue(); got != want {
			return fmt.Errorf("%s is %v, not %v", name, got, want)
		}
	}
	return nil
}
