package kube

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

const deploy = "../../deploy"

// collections are where objects of the manifests live.
var collections = map[string]string{
	"Namespace":          "/api/v1/namespaces",
	"ServiceAccount":     "/api/v1/namespaces/%s/serviceaccounts",
	"ConfigMap":          "/api/v1/namespaces/%s/configmaps",
	"ClusterRole":        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
	"ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
	"DaemonSet":          "/apis/apps/v1/namespaces/%s/daemonsets",
}

// parse reads a stream of YAML documents.
func parse(t *testing.T, text []byte) []object {
	t.Helper()
	var out []object
	for _, doc := range strings.Split(string(text), "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if o != nil {
			out = append(out, o)
		}
	}
	return out
}

func run(t *testing.T, path string, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
	out, err := cmd.Output()
	if e, ok := err.(*exec.ExitError); ok {
		err = fmt.Errorf("%w: %s", err, e.Stderr)
	}
	return out, err
}

// kustomized renders the base with components.
func kustomized(t *testing.T, components ...string) []object {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "k"), os.DirFS(filepath.Join(deploy, "kubernetes"))); err != nil {
		t.Fatal(err)
	}
	overlay := "resources: [../k/base]\ncomponents: ["
	for _, c := range components {
		overlay += "../k/components/" + c + ", "
	}
	if err := os.Mkdir(filepath.Join(dir, "overlay"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay", "kustomization.yaml"), []byte(overlay+"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := run(t, program(t, "VPCPROXY_KUSTOMIZE"), "build", filepath.Join(dir, "overlay"))
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, out)
}

// helmed renders the chart.
func helmed(t *testing.T, args ...string) ([]object, error) {
	t.Helper()
	out, err := run(t, program(t, "VPCPROXY_HELM"), append([]string{"template", "edge", deploy + "/helm/vpcproxy", "-n", "vpcproxy-system", "--kube-version", "1.34.0"}, args...)...)
	return parse(t, out), err
}

func find(t *testing.T, list []object, kind string) object {
	t.Helper()
	for _, o := range list {
		if o["kind"] == kind {
			return o
		}
	}
	t.Fatalf("there is no %s", kind)
	return nil
}

// create has the server take objects; query is "&dryRun=All" for a trial. Fields
// that it does not know are errors.
func (s *server) create(t *testing.T, list []object, query string) {
	t.Helper()
	for _, o := range list {
		kind := at[string](t, o, "kind")
		path, ok := collections[kind]
		if !ok {
			if kind != "PodMonitor" { // a kind of its operator, which is not here
				t.Errorf("kind %s is not expected", kind)
			}
			continue
		}
		if strings.Contains(path, "%s") {
			path = fmt.Sprintf(path, at[string](t, o, "metadata", "namespace"))
		}
		s.must(t, "POST", path+"?fieldValidation=Strict"+query, o)
	}
}

// podOf makes the pod that a DaemonSet asks for.
func podOf(t *testing.T, daemonSet object, namespace string) object {
	t.Helper()
	template := at[object](t, daemonSet, "spec", "template")
	return object{"apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
		"metadata": object{"name": "agent", "namespace": namespace, "labels": at[object](t, template, "metadata", "labels")}}
}

func TestManifests(t *testing.T) {
	s := start(t)
	base := kustomized(t)
	s.create(t, base, "")
	agents := at[string](t, find(t, base, "Namespace"), "metadata", "name")
	for name, components := range map[string][]string{"base": {}, "all components": {"podmonitor", "cni", "masquerade"}} {
		set := find(t, kustomized(t, components...), "DaemonSet")
		t.Run(name+" is admitted where it says", func(t *testing.T) {
			s.must(t, "POST", "/api/v1/namespaces/"+agents+"/pods?dryRun=All&fieldValidation=Strict", podOf(t, set, agents))
		})
		t.Run(name+" is restricted but for what it needs", func(t *testing.T) { s.isRestricted(t, set, len(components) > 0) })
	}
	t.Run("the agent may read pods and namespaces, and nothing else", func(t *testing.T) { s.mayReadOnly(t, agents) })
	t.Run("PodMonitor finds the agents", func(t *testing.T) {
		all := kustomized(t, "podmonitor")
		monitor, set := find(t, all, "PodMonitor"), find(t, all, "DaemonSet")
		labels := at[object](t, set, "spec", "template", "metadata", "labels")
		for k, v := range at[object](t, monitor, "spec", "selector", "matchLabels") {
			if labels[k] != v {
				t.Errorf("selects %s=%v, pods have %v", k, v, labels[k])
			}
		}
	})
	t.Run("Helm chart", func(t *testing.T) {
		chart, err := helmed(t)
		if err != nil {
			t.Fatal(err)
		}
		s.create(t, chart, "&dryRun=All")
		if d := cmp.Diff(podSpec(t, find(t, base, "DaemonSet")), podSpec(t, find(t, chart, "DaemonSet"))); d != "" {
			t.Errorf("the pods of base and chart differ (-base +chart):\n%s", d)
		}
		if d := cmp.Diff(find(t, base, "ClusterRole")["rules"], find(t, chart, "ClusterRole")["rules"]); d != "" {
			t.Errorf("the roles of base and chart differ (-base +chart):\n%s", d)
		}
		all, err := helmed(t, "--set", "cni.install=true,masquerade.enabled=true,podMonitor.enabled=true")
		if err != nil {
			t.Fatal(err)
		}
		s.create(t, all, "&dryRun=All")
		components := find(t, kustomized(t, "podmonitor", "cni", "masquerade"), "DaemonSet")
		if d := cmp.Diff(podSpec(t, components), podSpec(t, find(t, all, "DaemonSet"))); d != "" {
			t.Errorf("with all options the pods of base and chart differ (-base +chart):\n%s", d)
		}
		find(t, all, "PodMonitor")
	})
}

// podSpec is a DaemonSet's pod without names that follow from the release's,
// and with volumes in the order of their names.
func podSpec(t *testing.T, set object) object {
	t.Helper()
	text, err := json.Marshal(at[object](t, set, "spec", "template", "spec"))
	if err != nil {
		t.Fatal(err)
	}
	var spec object
	if err := json.Unmarshal(text, &spec); err != nil {
		t.Fatal(err)
	}
	byName := func(a, b any) int {
		return strings.Compare(at[string](t, a.(object), "name"), at[string](t, b.(object), "name"))
	}
	spec["serviceAccountName"] = "vpcproxy-agent"
	volumes := at[[]any](t, spec, "volumes")
	slices.SortFunc(volumes, byName)
	for _, v := range volumes {
		if c, ok := v.(object)["configMap"].(object); ok && v.(object)["name"] == "config" {
			c["name"] = "vpcproxy-agent"
		}
	}
	for _, c := range at[[]any](t, spec, "containers") {
		slices.SortFunc(at[[]any](t, c.(object), "volumeMounts"), byName)
		slices.SortFunc(at[[]any](t, c.(object), "env"), byName)
	}
	return spec
}

// isRestricted has the server say what is not within the level "restricted".
func (s *server) isRestricted(t *testing.T, set object, all bool) {
	t.Helper()
	name := map[bool]string{false: "strict-base", true: "strict-all"}[all]
	s.must(t, "POST", "/api/v1/namespaces", object{"apiVersion": "v1", "kind": "Namespace", "metadata": object{
		"name": name, "labels": object{"pod-security.kubernetes.io/enforce": "restricted"}}})
	s.must(t, "POST", "/api/v1/namespaces/"+name+"/serviceaccounts", object{"apiVersion": "v1", "kind": "ServiceAccount",
		"metadata": object{"name": "vpcproxy-agent", "namespace": name}})
	pod := podOf(t, set, name)
	delete(pod["spec"].(object), "priorityClassName") // node-critical pods have quotas of their own
	status, answer, err := s.request(adminToken, "POST", "/api/v1/namespaces/"+name+"/pods?dryRun=All", pod)
	if err != nil || status != http.StatusForbidden {
		t.Fatalf("%d, %v: %s", status, err, answer)
	}
	var refusal struct{ Message string }
	if err := json.Unmarshal(answer, &refusal); err != nil {
		t.Fatal(err)
	}
	_, list, ok := strings.Cut(refusal.Message, "violates PodSecurity \"restricted:latest\": ")
	if !ok {
		t.Fatal(refusal.Message)
	}
	for _, needed := range []string{
		"host namespaces (hostNetwork=true)",
		"hostPort (container \"vpcproxyd\" uses hostPort 9464)", // what host network makes of a port
		"unrestricted capabilities (container \"vpcproxyd\" must not include \"NET_ADMIN\", \"NET_RAW\" in securityContext.capabilities.add)",
		"runAsNonRoot != true", "runAsUser=0", "restricted volume types",
	} {
		if !strings.Contains(list, needed) {
			t.Errorf("%q is not needed: the base is stricter than it says", needed)
		}
	}
	for _, other := range []string{"allowPrivilegeEscalation", "seccompProfile", "privileged", "procMount", "forbidden sysctls", "probe or lifecycle host", "hostPID", "hostIPC", "capabilities.drop"} {
		if strings.Contains(list, other) {
			t.Errorf("%s is not within restricted, and need not be: %s", other, list)
		}
	}
	if n := strings.Count(list, "), ") + 1; n != 6 {
		t.Errorf("%d violations, want 6: %s", n, list)
	}
}

// mayReadOnly acts as the agent.
func (s *server) mayReadOnly(t *testing.T, namespace string) {
	t.Helper()
	token := s.token(t, namespace, "vpcproxy-agent")
	pod := object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": "x"}, "spec": object{"containers": []any{object{"name": "x", "image": "x"}}}}
	for _, c := range []struct {
		method, path string
		body         any
		want         int
	}{
		{"GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode1", nil, 200},
		{"GET", "/api/v1/namespaces", nil, 200},
		{"GET", "/api/v1/namespaces/default", nil, 200},
		{"GET", "/api/v1/secrets", nil, 403},
		{"GET", "/api/v1/namespaces/" + namespace + "/secrets", nil, 403},
		{"GET", "/api/v1/configmaps", nil, 403},
		{"GET", "/api/v1/nodes", nil, 403},
		{"GET", "/api/v1/services", nil, 403},
		{"GET", "/apis/apps/v1/daemonsets", nil, 403},
		{"POST", "/api/v1/namespaces/default/pods", pod, 403},
		{"POST", "/api/v1/namespaces/default/pods/x/exec?command=sh", nil, 403},
		{"GET", "/api/v1/namespaces/default/pods/x/log", nil, 403},
		{"PATCH", "/api/v1/namespaces/default/pods/x", patch(`{"metadata":{"annotations":{"a":"b"}}}`), 403},
		{"PATCH", "/api/v1/namespaces/default/pods/x/status", patch(`{"status":{"podIP":"10.0.0.1"}}`), 403},
		{"DELETE", "/api/v1/namespaces/default/pods/x", nil, 403},
		{"PATCH", "/api/v1/namespaces/default", patch(`{"metadata":{"annotations":{"vpcproxy.io/attachment":"red"}}}`), 403},
		{"POST", "/api/v1/namespaces/" + namespace + "/serviceaccounts/vpcproxy-agent/token", object{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}, 403},
		{"PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterroles/vpcproxy-agent", patch(`{"rules":[]}`), 403},
	} {
		status, answer, err := s.request(token, c.method, c.path, c.body)
		if err != nil || status != c.want {
			t.Errorf("%s %s: %d, %v; want %d\n%s", c.method, c.path, status, err, c.want, answer)
		}
	}
}

func TestChartRefusesWrongValues(t *testing.T) {
	for values, want := range map[string]string{
		"config.roles={proxy}":               "roles",
		"config.controller.address=10.0.0.1": "address",
		"config.sysctlDirectory=/proc/sys":   "sysctlDirectory",
		"cni.instal=true":                    "instal",
		"image.pullPolicy=Sometimes":         "pullPolicy",
		"image.repository=":                  "repository",
		"paths.run=run":                      "run",
		"podMonitor.interval=30":             "interval",
		"resources.limit.memory=1Gi":         "limit",
		"masquerade.enabled=yes\\,please":    "enabled",
		"config.metrics.address=everywhere":  "address",
		"tolerations=all":                    "tolerations",
	} {
		t.Run(values, func(t *testing.T) {
			_, err := helmed(t, "--set", values)
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "schema") {
				t.Errorf("helm template: %v; want a violation of the schema that names %s", err, want)
			}
		})
	}
}
