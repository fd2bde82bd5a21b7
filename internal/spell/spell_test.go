package spell

import "testing"

func TestNearest(t *testing.T) {
	words := []string{"etcd.endpoints", "etcd.directory", "roles", "node", "socket"}
	for word, want := range map[string]string{
		"etcd.endpoint": "etcd.endpoints",
		"roels":         "roles",
		"Node":          "node",
		"nod":           "node",
		"socket":        "socket",
		"tunnel":        "",
		"x":             "",
		"":              "",
	} {
		if got := Nearest(word, words); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", word, got, want)
		}
	}
}
