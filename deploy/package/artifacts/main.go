// Command artifacts writes what a package holds besides the programs: manual
// pages, completions, and the list of modules that the programs are made of.
//
//	artifacts manual DIR          vpcproxyctl*.1, vpcproxyd*.8, vpcproxyd.yaml.5, compressed
//	artifacts completion DIR      vpcproxyctl.bash, .zsh, .fish
//	artifacts sbom PROGRAM...     CycloneDX, to standard output
//
// The same input gives the same bytes. SOURCE_DATE_EPOCH is the pages' date.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/vpcproxy/vpcproxy/internal/cli"
	"github.com/vpcproxy/vpcproxy/internal/config"
	"github.com/vpcproxy/vpcproxy/internal/version"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "artifacts:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: artifacts manual|completion DIR, or artifacts sbom PROGRAM")
	}
	switch args[0] {
	case "manual":
		return manual(args[1])
	case "completion":
		return completion(args[1])
	case "sbom":
		return sbom(os.Stdout, args[1:])
	}
	return fmt.Errorf("%q is not known", args[0])
}

// client is vpcproxyctl with all of its commands; none is run.
func client() *cobra.Command {
	return cli.New(cli.Deps{Cleanup: func(context.Context, string, io.Writer) error { return nil }})
}

func manual(dir string) error {
	work, err := os.MkdirTemp("", "manual")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	for section, root := range map[string]*cobra.Command{
		"1": client(),
		"8": config.Root(version.Version, func(*cobra.Command, *config.Config) error { return nil }),
	} {
		undated(root)
		header := &doc.GenManHeader{Section: section, Source: "vpcproxy", Manual: "vpcproxy"}
		if err := doc.GenManTree(root, header, work); err != nil {
			return err
		}
	}
	// md2man takes the title of the first line.
	page := "vpcproxyd.yaml 5 \"\" vpcproxy vpcproxy\n====\n\n# NAME\n\nvpcproxyd.yaml - configuration of vpcproxyd\n\n" +
		"# REFERENCE\n\n\t" + strings.ReplaceAll(strings.TrimSpace(config.Reference()), "\n", "\n\t") + "\n"
	if err := os.WriteFile(filepath.Join(work, "vpcproxyd.yaml.5"), md2man.Render([]byte(page)), 0o600); err != nil {
		return err
	}
	return compressAll(work, dir)
}

// undated leaves out the line that says when the page was made.
func undated(c *cobra.Command) {
	c.DisableAutoGenTag = true
	for _, sub := range c.Commands() {
		undated(sub)
	}
}

func compressAll(from, to string) error {
	names, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, n := range names {
		page, err := os.ReadFile(filepath.Join(from, n.Name()))
		if err != nil {
			return err
		}
		var b bytes.Buffer
		z, err := gzip.NewWriterLevel(&b, gzip.BestCompression) // no name, no time
		if err != nil {
			return err
		}
		_, err = z.Write(page)
		if err := errors.Join(err, z.Close()); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, n.Name()+".gz"), b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func completion(dir string) error {
	for ext, write := range map[string]func(*cobra.Command, io.Writer) error{
		"bash": func(c *cobra.Command, w io.Writer) error { return c.GenBashCompletionV2(w, true) },
		"zsh":  (*cobra.Command).GenZshCompletion,
		"fish": func(c *cobra.Command, w io.Writer) error { return c.GenFishCompletion(w, true) },
	} {
		var b bytes.Buffer
		if err := write(client(), &b); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "vpcproxyctl."+ext), b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}
