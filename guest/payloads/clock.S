# Two clocks: the timer (8254) through the interrupt controller (8259A), and the local APIC's own,
# 50 times a second each. Prints "tick" each time both have arrived, and sleeps in HLT in between.
.include "header.inc"
	.equ CODE, 0x10			# the code segment in the GDT that hull made
	.equ VECTOR, 0x20		# of the 8254; the APIC's is the next one
	.equ PIC, 0x20			# 8259A: commands, and data at 0x21
	.equ PIT, 0x40			# 8254: counter 0, and its control word at 0x43
	.equ HERTZ, 50
	.equ APIC, 0xfee00000
	.equ EOI, 0x0b0
	.equ SPURIOUS, 0x0f0
	.equ LVT_TIMER, 0x320		# bit 17: periodic
	.equ INITIAL, 0x380
	.equ DIVIDE, 0x3e0

.macro put value, port
	mov $\value, %al
	out %al, $\port
.endm
.macro gate handler, at
	mov $\handler, %eax
	mov %ax, \at
	movw $CODE, \at + 2
	movw $0x8e00, \at + 4		# present, ring 0, interrupt gate
	shr $16, %eax
	mov %ax, \at + 6
	movl $0, \at + 8
.endm

.code64
.text
	flat_header 64
	gate tick, gates
	gate beat, gates + 16
	lidt idt_pointer

	put 0x11, PIC			# as in interrupts.S
	put VECTOR, PIC + 1
	put 0x04, PIC + 1
	put 0x01, PIC + 1
	put 0xfe, PIC + 1
	put 0x34, PIT + 3
	put (1193182 / HERTZ) & 0xff, PIT
	put (1193182 / HERTZ) >> 8, PIT

	mov $APIC, %ebp
	movl $0x1ff, SPURIOUS(%rbp)
	movl $3, DIVIDE(%rbp)		# by 16: of KVM's 1 GHz
	movl $0x20000 | (VECTOR + 1), LVT_TIMER(%rbp)
	movl $1000000000 / 16 / HERTZ, INITIAL(%rbp)

1:	sti
	hlt				# until the next interrupt
	cli
	cmpb $0, ticked
	je 1b
	cmpb $0, beaten
	je 1b
	movb $0, ticked
	movb $0, beaten
	mov $message, %esi
	mov $message_end - message, %ecx
	mov $0x3f8, %dx
	rep outsb
	jmp 1b

tick:	push %rax
	movb $1, ticked
	put 0x20, PIC			# EOI: the line may interrupt again
	pop %rax
	iretq

beat:	movb $1, beaten
	movl $0, EOI(%rbp)
	iretq

message: .ascii "tick\n"
message_end:
ticked:	.byte 0
beaten:	.byte 0
	.balign 16
idt:	.skip 16 * VECTOR		# no exception is expected
gates:	.skip 32
idt_pointer:
	.word . - idt - 1
	.quad idt
