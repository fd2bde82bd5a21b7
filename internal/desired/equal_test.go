package desired

import (
	"reflect"
	"testing"
)

// TestEqual knows every field: one that is added and forgotten would never be
// programmed.
func TestEqual(t *testing.T) {
	if !New().Equal(State{}) {
		t.Error("two states that want nothing differ")
	}
	for i := range reflect.TypeFor[State]().NumField() {
		s := New()
		f := reflect.ValueOf(&s).Elem().Field(i)
		f.SetMapIndex(reflect.Zero(f.Type().Key()), reflect.Zero(f.Type().Elem()))
		if s.Equal(New()) || New().Equal(s) || !s.Equal(s) {
			t.Errorf("%s is not compared", reflect.TypeFor[State]().Field(i).Name)
		}
	}
}
