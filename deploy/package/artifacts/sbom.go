package main

import (
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
)

// bom is the part of CycloneDX 1.5 that is needed (https://cyclonedx.org/docs/1.5/json/).
type bom struct {
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Type    string `json:"type"`
	Ref     string `json:"bom-ref"`
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	PURL    string `json:"purl,omitempty"`
	Hashes  []hash `json:"hashes,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn,omitempty"`
}

// sbom lists the modules that programs were built of, as their build
// information tells.
func sbom(w io.Writer, programs []string) error {
	b := bom{Format: "CycloneDX", Spec: "1.5", Version: 1}
	seen := map[string]component{}
	for _, path := range programs {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		name := filepath.Base(path)
		b.Metadata.Component = component{Type: "application", Ref: info.Main.Path, Name: "vpcproxy"}
		program := component{Type: "application", Ref: "program:" + name, Name: name}
		uses := dependency{Ref: program.Ref}
		standard := module("std", strings.TrimPrefix(info.GoVersion, "go"), "")
		seen[standard.Ref] = standard
		uses.DependsOn = append(uses.DependsOn, standard.Ref)
		for _, d := range info.Deps {
			if d.Replace != nil {
				d = d.Replace
			}
			m := module(d.Path, d.Version, d.Sum)
			seen[m.Ref] = m
			uses.DependsOn = append(uses.DependsOn, m.Ref)
		}
		slices.Sort(uses.DependsOn)
		b.Components = append(b.Components, program)
		b.Dependencies = append(b.Dependencies, uses)
	}
	for _, m := range seen {
		b.Components = append(b.Components, m)
	}
	slices.SortFunc(b.Components, func(x, y component) int { return strings.Compare(x.Ref, y.Ref) })
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	return e.Encode(b)
}

// module is a Go module; sum is as in go.sum ("h1:" and a SHA-256 in base64).
func module(path, version, sum string) component {
	purl := "pkg:golang/" + path + "@" + version
	c := component{Type: "library", Ref: purl, Name: path, Version: version, PURL: purl}
	if digest, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(sum, "h1:")); err == nil && len(digest) > 0 {
		c.Hashes = []hash{{"SHA-256", hex.EncodeToString(digest)}}
	}
	return c
}
