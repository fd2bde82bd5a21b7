package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/manifest"
)

const applyLong = `Apply makes objects as the files say: all of them, or none if one is refused.
What is in force already stays as it is. Errors name the file and the line.`

func (a *app) applyCommand() *cobra.Command {
	var path string
	var dryRun bool
	c := &cobra.Command{
		Use:   "apply -f FILE|DIRECTORY|-",
		Short: "Create or update objects from YAML or JSON",
		Long:  applyLong,
		Example: "  vpcproxyctl apply -f platform.yaml\n" +
			"  vpcproxyctl get attachments -o yaml | sed s/blue/green/ | vpcproxyctl apply -f -",
		Args: noArgs,
	}
	c.Flags().StringVarP(&path, "filename", "f", "", "`file`, directory (*.yaml, *.yml, *.json), or - for standard input")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "check and print what would be, change nothing")
	out := addFormat(c, formatJSON, formatYAML, formatName)
	c.RunE = func(c *cobra.Command, _ []string) error { return a.apply(c, path, dryRun, out) }
	return c
}

func (a *app) apply(c *cobra.Command, path string, dryRun bool, out *format) error {
	if path == "" {
		return usagef("-f is missing; give a file, a directory, or - for standard input")
	}
	docs, err := manifest.Load(path, a.In)
	if err != nil {
		return &exitError{codeUsage, err}
	}
	if len(docs) == 0 {
		return usagef("%s holds no object", path)
	}
	client, err := a.control()
	if err != nil {
		return err
	}
	req := &apiv1.ApplyRequest{DryRun: dryRun}
	for _, d := range docs {
		s, err := toStruct(d.Object)
		if err != nil {
			return err
		}
		req.Objects = append(req.Objects, s)
	}
	ctx, cancel := timeout(c, callTimeout)
	defer cancel()
	resp, err := client.Apply(ctx, connect.NewRequest(req))
	if err != nil {
		return a.applyError(docs, err)
	}
	var done []applied
	for _, r := range resp.Msg.GetResults() {
		o, err := fromStruct(r.GetObject())
		if err != nil {
			return err
		}
		a.warn(r.GetWarnings())
		done = append(done, applied{o, r.GetOutcome()})
	}
	return a.printApplied(out, done, dryRun, len(done) == 1)
}

// applyError puts the controller's objections at the lines that they are about.
func (a *app) applyError(docs []*manifest.Document, err error) error {
	problems := fieldProblems(err)
	if len(problems) == 0 {
		return a.controlError(err)
	}
	var out []error
	for _, p := range problems {
		i := slices.IndexFunc(docs, func(d *manifest.Document) bool {
			return p.Object == intent.Reference(d.Object.ObjectKind(), d.Object.ObjectName())
		})
		switch {
		case i < 0:
			out = append(out, problemError(p))
		case p.Field == "":
			out = append(out, docs[i].Locate(problemError(p)))
		default:
			out = append(out, docs[i].Locate(p))
		}
	}
	return &exitError{exitCode(err), errors.Join(out...)}
}

// applied is what became of an object.
type applied struct {
	object  intent.Object
	outcome apiv1.Outcome
}

var outcomeText = map[apiv1.Outcome]string{
	apiv1.Outcome_OUTCOME_CREATED:   "created",
	apiv1.Outcome_OUTCOME_UPDATED:   "updated",
	apiv1.Outcome_OUTCOME_UNCHANGED: "unchanged",
}

// printApplied writes a line for each object, or the objects in full.
func (a *app) printApplied(out *format, done []applied, dryRun, single bool) error {
	objects := make([]intent.Object, 0, len(done))
	for _, d := range done {
		objects = append(objects, d.object)
	}
	switch out.word {
	case formatWide:
		return a.write(table(wideRows(objects)), nil)
	case "":
	default:
		return a.write(encodeObjects(out, objects, single))
	}
	var b strings.Builder
	for _, d := range done {
		fmt.Fprintf(&b, "%s %s%s\n", reference(d.object), outcomeText[d.outcome], dryRunMark(dryRun))
	}
	return a.write([]byte(b.String()), nil)
}

func dryRunMark(dryRun bool) string {
	if dryRun {
		return " (dry run)"
	}
	return ""
}
