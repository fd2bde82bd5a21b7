package cni

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/vpcproxy/vpcproxy/internal/kube/names"
)

// annotationsCapability is how containerd and CRI-O hand a pod's annotations to
// plugins that ask for them.
const annotationsCapability = "io.kubernetes.cri.pod-annotations"

// Defaults of the configuration.
const (
	defaultSocket  = "/run/vpcproxy/node.sock"
	defaultTimeout = 10 * time.Second
)

// config is the plugin's part of a network configuration list.
type config struct {
	types.PluginConf
	// Socket is the node agent's.
	Socket string `json:"socket"`
	// Attachments are given to every pod of the network, in the place of
	// annotations.
	Attachments []string `json:"attachments"`
	// SkipNamespaces are namespaces whose pods start without asking the agent:
	// those that the cluster needs to come up. They cannot have attachments.
	SkipNamespaces []string `json:"skipNamespaces"`
	// Timeout bounds a call, such as "10s".
	Timeout string `json:"timeout"`

	Runtime struct {
		Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	} `json:"runtimeConfig"`

	limit time.Duration
}

// podArgs are what kubelet's runtime tells in CNI_ARGS.
type podArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE types.UnmarshallableString //nolint:staticcheck // a key of CNI_ARGS, found by this name
	K8S_POD_NAME      types.UnmarshallableString //nolint:staticcheck // a key of CNI_ARGS, found by this name
	K8S_POD_UID       types.UnmarshallableString //nolint:staticcheck // a key of CNI_ARGS, found by this name
}

func invalid(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, "vpcproxy-cni: "+fmt.Sprintf(format, args...), "")
}

// parse reads a network configuration.
func parse(stdin []byte) (*config, error) {
	c := &config{Socket: defaultSocket, limit: defaultTimeout, SkipNamespaces: []string{"kube-system"}}
	if err := json.Unmarshal(stdin, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "vpcproxy-cni: the network configuration cannot be read", err.Error())
	}
	if c.Timeout != "" {
		d, err := time.ParseDuration(c.Timeout)
		if err != nil || d <= 0 {
			return nil, invalid("timeout: %q is not a duration with its unit, such as 10s", c.Timeout)
		}
		c.limit = d
	}
	if slices.Contains(c.Attachments, "") {
		return nil, invalid("attachments: holds an empty name")
	}
	if c.RawPrevResult == nil {
		return c, nil
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "vpcproxy-cni: prevResult cannot be read", err.Error())
	}
	return c, nil
}

// result returns what the plugins before this one have made.
func (c *config) result() (*types100.Result, error) {
	if c.PrevResult == nil {
		return nil, invalid("there is no prevResult: put vpcproxy-cni after the plugin that gives pods their addresses, in \"plugins\"")
	}
	r, err := types100.NewResultFromResult(c.PrevResult)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "vpcproxy-cni: prevResult cannot be read", err.Error())
	}
	return r, nil
}

// annotations returns the pod's value, and whether it is known if there is one.
func (c *config) annotation() (value *string, known bool) {
	if !c.Capabilities[annotationsCapability] && c.Runtime.Annotations == nil {
		return nil, false
	}
	if v, ok := c.Runtime.Annotations[names.Annotation]; ok {
		return &v, true
	}
	// A runtime that cannot hand annotations over leaves them all out.
	return nil, len(c.Runtime.Annotations) > 0
}
