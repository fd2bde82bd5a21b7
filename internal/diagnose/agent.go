package diagnose

import "fmt"

var (
	codeIntentLost = Code{"intent-lost", Warning, "the agent does not follow its intent",
		"The controller, or the directory of manifests, cannot be read. The last good intent stays in force and goes on being repaired; changes do not arrive.",
		"The evidence says what fails: the address, the certificate, a file that does not decode. `vpcproxyctl status --node-socket /run/vpcproxy/node.sock` shows when it is followed again."}
	codeIntentHeld = Code{"intent-held", Error, "an intent is held back",
		"More than a third of this node's attachments vanished from the intent at once, without having been deleted. The node keeps what it has.",
		"If they are really gone, `vpcproxyctl node confirm-removal` on this node accepts it. If not, find out what emptied the controller's store or the directory."}
	codePlanStale = Code{"plan-stale", Error, "the plan is older than the intent",
		"The agent could not observe this machine, so that changes of the intent are not planned. What was planned stays in force.",
		"The evidence names the observation that fails, often a lack of privileges or of memory."}
	codePlanProblem = Code{"plan-problem", Error, "an attachment cannot be planned",
		"Something that the attachment needs is not there or contradicts something else. Pods of the attachment are refused, never sent from a wrong address; other attachments are not concerned.",
		"The evidence names the object and the field to mend, in the words of the manifest."}
	codeAgentDown = Code{"agent-down", Error, "the node agent does not answer",
		"It does not run, or serves another socket. Traffic goes on, but nothing is repaired, and no change arrives.",
		"`systemctl status vpcproxyd` and `journalctl -u vpcproxyd` say why; the configuration's key `socket` says where it listens."}
	agentCodes = []Code{codeAgentDown, codeIntentLost, codeIntentHeld, codePlanStale, codePlanProblem}
)

// AgentDown is the finding of whoever asks in vain.
func AgentDown(socket string, err error) Finding {
	f := &findings{node: "this machine"}
	f.add(codeAgentDown, "", "the node agent at "+socket+" does not answer", []string{err.Error()},
		[]string{"systemctl start vpcproxyd", "journalctl -u vpcproxyd"})
	return f.list[0]
}

func (f *findings) agent(e *Evidence) {
	if p := e.Agent.IntentProblem; p != "" {
		f.add(codeIntentLost, "", "the intent is not followed; the last good one stays in force", []string{p},
			[]string{"vpcproxyctl status --node-socket /run/vpcproxy/node.sock"})
	}
	if h := e.Agent.Held; h != "" {
		f.add(codeIntentHeld, "", "an intent is held back because too many attachments vanished from it", []string{h},
			[]string{"vpcproxyctl node confirm-removal"})
	}
	if p := e.Agent.PlanProblem; p != "" {
		f.add(codePlanStale, "", "the plan could not be renewed", []string{p}, []string{"journalctl -u vpcproxyd"})
	}
	for _, p := range e.Agent.Problems {
		f.add(codePlanProblem, p.Attachment, p.Message, []string{p.Message}, lines("vpcproxyctl describe attachment %s", orAll(p.Attachment)))
	}
}

func orAll(s string) string {
	if s == "" {
		return "NAME"
	}
	return s
}

// objectKinds are the kinds of kernel objects, as the reconciler names them, and
// what the lack of one does.
var objectKinds = []struct{ kind, one, lack string }{
	{"namespaces", "network namespace", "The attachment has no place on this proxy: nothing of it passes."},
	{"nat", "address translation and filter", "Packets would leave from a wrong address, or connections be opened that must not; what depends on it is held back."},
	{"peers", "GRE peer", "GRE from a node that is not in the list is dropped before decapsulation, without an answer."},
	{"links", "tunnel device", "There is no device to send by, or one with another key, address or MTU: nothing passes, or only small packets do."},
	{"enis", "ENI", "The interface in the user's subnet is not in the attachment's namespace: nothing reaches the user's VPC."},
	{"egress", "egress guard", "Nothing keeps untranslated packets from leaving by the ENI; what depends on it is held back."},
	{"addresses", "address", "The tunnel has no inner address, or the ENI not the one that connections come from: answers do not come back."},
	{"neighbors", "neighbor", "The kernel does not know at which underlay address the other end of the tunnel is, or sends to a wrong one."},
	{"sysctls", "kernel parameter", "Packets are not forwarded, or dropped as if they came from the wrong side (rp_filter)."},
	{"nexthops", "next hop", "Connections are not spread over the proxy groups that are alive."},
	{"routes", "route", "Packets have no way into the tunnel or back: they are refused, or go somewhere else."},
	{"rules", "policy rule", "Marked packets are not looked up in the attachment's table, and leave by the host's default route."},
	{"steers", "steering entry", "The pod's packets are not marked for the attachment, and leave by the host's default route."},
	{"paths", "BGP path", "Others do not know that this node serves, or can be reached."},
	{"peerings", "BGP peer", "Routes of that peer are not heard, nor ours told."},
}

func objectCode(kind, one, lack string) Code {
	return Code{kind + "-differ", Error, fmt.Sprintf("a %s is not as it should be", one),
		lack + " The agent repairs such things within a second; that it is still so means that the agent does not run, cannot write, or that another program keeps undoing it.",
		"`vpcproxyctl resync` has the agent look at everything again. If it comes back, the reason in the evidence and `journalctl -u vpcproxyd` name who is in the way. The commands given do by hand what the agent would do."}
}

func objectCodes() []Code {
	var all []Code
	for _, k := range objectKinds {
		all = append(all, objectCode(k.kind, k.one, k.lack))
	}
	return all
}

// codeOfKind returns the code for a kind of objects.
func codeOfKind(kind string) Code {
	for _, k := range objectKinds {
		if k.kind == kind {
			return objectCode(k.kind, k.one, k.lack)
		}
	}
	return objectCode("objects", "kernel object", "Something of ours is not in place.")
}

// maxDifferences bounds how many differences of a kind are told one by one.
const maxDifferences = 5

func (f *findings) objects(e *Evidence) {
	told := map[string]int{}
	for _, d := range e.Differences {
		if told[d.Kind]++; told[d.Kind] <= maxDifferences {
			f.difference(d)
		}
	}
	for kind, n := range told {
		if n > maxDifferences {
			f.add(codeOfKind(kind), "", fmt.Sprintf("%d more %s differ", n-maxDifferences, kind), nil, []string{"vpcproxyctl plan"})
		}
	}
}

func (f *findings) difference(d Difference) {
	what := map[string]string{"create": "is missing", "repair": "differs", "delete": "is there and should not be"}[d.Op]
	var evidence []string
	if d.Reason != "" && d.Reason != "missing" {
		evidence = []string{d.Reason}
	}
	f.add(codeOfKind(d.Kind), d.Attachment, fmt.Sprintf("%s: %s %s", d.Kind, d.Key, what), evidence, append([]string{"vpcproxyctl resync"}, d.Commands...))
}
