// Package keepalived reads the vrrp_instance and vrrp_sync_group part of a
// keepalived configuration (keepalived.conf(5)) and says what it amounts to as a
// ProxyGroup.
package keepalived

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// statement is a line: words, and what is in braces behind them.
type statement struct {
	file  string
	line  int
	words []string
	block []statement // nil without braces
}

func (s statement) at() string { return fmt.Sprintf("%s:%d", s.file, s.line) }

// arg returns a word behind the keyword, or "".
func (s statement) arg(n int) string {
	if n < len(s.words) {
		return s.words[n]
	}
	return ""
}

// ErrSyntax is for text that is no keepalived configuration.
var ErrSyntax = errors.New("is not a keepalived configuration")

// parse reads statements. name is for messages.
func parse(r io.Reader, name string) ([]statement, error) {
	p := &parser{name: name}
	for lines := bufio.NewScanner(r); lines.Scan(); {
		p.line++
		for _, word := range words(lines.Text()) {
			if err := p.word(word); err != nil {
				return nil, err
			}
		}
		p.end()
	}
	if len(p.stack) > 0 {
		return nil, fmt.Errorf("%s: %w: the braces of line %d are not closed", name, ErrSyntax, p.stack[len(p.stack)-1].line)
	}
	return p.done, nil
}

// words splits a line. Braces are words of their own; # and ! begin a comment;
// quotes keep words together.
func words(line string) (out []string) {
	var b strings.Builder
	quoted := false
	flush := func() {
		if b.Len() > 0 {
			out = append(out, b.String())
			b.Reset()
		}
	}
	for _, r := range line {
		switch {
		case r == '"':
			quoted = !quoted
		case quoted:
			b.WriteRune(r)
		case r == '#' || r == '!':
			flush()
			return out
		case r == '{' || r == '}':
			flush()
			out = append(out, string(r))
		case r == ' ' || r == '\t' || r == '\r':
			flush()
		default:
			b.WriteRune(r)
		}
	}
	flush()
	return out
}

type parser struct {
	name  string
	line  int
	open  *statement   // being read
	stack []*statement // whose braces are open
	done  []statement
}

func (p *parser) word(w string) error {
	switch w {
	case "{":
		if p.open == nil {
			// The brace is on a line of its own: it belongs to the last one.
			list := p.list()
			if len(*list) == 0 {
				return fmt.Errorf("%s:%d: %w: a brace that belongs to nothing", p.name, p.line, ErrSyntax)
			}
			last := (*list)[len(*list)-1]
			*list = (*list)[:len(*list)-1]
			p.open = &last
		}
		p.open.block = []statement{}
		p.stack = append(p.stack, p.open)
		p.open = nil
	case "}":
		p.end()
		if len(p.stack) == 0 {
			return fmt.Errorf("%s:%d: %w: a brace too many", p.name, p.line, ErrSyntax)
		}
		closed := p.stack[len(p.stack)-1]
		p.stack = p.stack[:len(p.stack)-1]
		*p.list() = append(*p.list(), *closed)
	default:
		if p.open == nil {
			p.open = &statement{file: p.name, line: p.line}
		}
		p.open.words = append(p.open.words, w)
	}
	return nil
}

// list is where statements go.
func (p *parser) list() *[]statement {
	if len(p.stack) == 0 {
		return &p.done
	}
	return &p.stack[len(p.stack)-1].block
}

// end finishes the statement of a line.
func (p *parser) end() {
	if p.open != nil {
		*p.list() = append(*p.list(), *p.open)
		p.open = nil
	}
}
