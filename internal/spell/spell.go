// Package spell finds what a mistyped word was meant to be.
package spell

import "strings"

// Nearest returns the candidate that is closest to word, or "" if none is
// close enough to be what was meant: case aside, a third of the word's letters
// may differ, or two (which a swap of neighbors costs) of a word of four or
// more. On a tie the first candidate wins.
func Nearest(word string, candidates []string) string {
	limit := 1
	if len(word) >= 4 {
		limit = max(2, len(word)/3)
	}
	best, distance := "", limit+1
	for _, c := range candidates {
		if d := levenshtein(strings.ToLower(word), strings.ToLower(c)); d < distance {
			best, distance = c, d
		}
	}
	return best
}

// levenshtein is the number of letters to insert, delete or replace to make b
// of a.
func levenshtein(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := min(row[j+1]+1, row[j]+1, diagonal+cost)
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
